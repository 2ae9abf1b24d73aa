"""The models of all upstreams: those that they list, and those that the settings name."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Protocol, cast

from fastapi import APIRouter
from starlette.responses import Response

from activities.upstreams.client import UpstreamUnavailableError
from activities.upstreams.config import Upstream, is_pattern
from api.http.errors import RETRY_AFTER, ApiError, shown
from api.http.schemas import error_responses

log = logging.getLogger("everbatch.api")

Entry = dict[str, object]


class ModelsProxy(Protocol):
    @property
    def upstream(self) -> Upstream: ...

    async def get_models_raw(self) -> tuple[int, bytes]:
        """Status and body of the inference server's ``GET /models``.

        Raises:
            UpstreamUnavailableError: it does not answer.
        """
        ...


def models_router(proxies: Sequence[ModelsProxy]) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["Models"], responses=error_responses(401))

    async def list_models() -> Response:
        body = {"object": "list", "data": await _models(proxies)}
        return Response(json.dumps(body), media_type="application/json")

    async def retrieve_model(model: str) -> Response:
        for entry in await _models(proxies):
            if entry.get("id") == model:
                return Response(json.dumps(entry), media_type="application/json")
        message = f"The model '{shown(model)}' does not exist."
        raise ApiError(404, message, code="model_not_found", param="model")

    answers = error_responses(502, 503) | {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}
    router.add_api_route("", list_models, methods=["GET"], responses=answers)
    # Names of models have slashes in them.
    router.add_api_route("/{model:path}", retrieve_model, methods=["GET"], responses=answers | error_responses(404))
    return router


async def _models(proxies: Sequence[ModelsProxy]) -> list[Entry]:
    """Each model once. An upstream that fails leaves what its settings name; if nobody has any, its error is raised."""
    answers = await asyncio.gather(*map(_of_upstream, proxies))
    found: dict[object, Entry] = {}
    for entries, _ in answers:
        for entry in entries:
            found.setdefault(entry.get("id"), entry)
    errors = [error for _, error in answers if error]
    if errors and not found:
        raise errors[0]
    return list(found.values())


async def _of_upstream(proxy: ModelsProxy) -> tuple[list[Entry], ApiError | None]:
    """Entries of one upstream, its own before ours; with why its own are missing, if they are."""
    upstream = proxy.upstream
    named = [name for name in (*upstream.models, *upstream.aliases) if name in upstream.aliases or not is_pattern(name)]
    entries: list[Entry] = [
        {"id": name, "object": "model", "created": 0, "owned_by": upstream.name} for name in dict.fromkeys(named)
    ]
    if not upstream.lists_models:
        return entries, None
    try:
        listed = await _listed(proxy)
    except ApiError as error:
        return entries, error
    if upstream.models:
        listed = [entry for entry in listed if upstream.takes(str(entry.get("id")))]
    return [*listed, *entries], None


async def _listed(proxy: ModelsProxy) -> list[Entry]:
    """The list of models as the inference server wrote it."""
    try:
        status, body = await proxy.get_models_raw()
    except UpstreamUnavailableError as error:
        log.warning("%s", error)
        raise ApiError(503, "The inference server does not answer.", "server_error", headers=RETRY_AFTER) from None
    if status != 200:
        # Its 401 is about our key, its 404 about our address: neither is the client's to mend.
        raise ApiError(502, f"The inference server answered HTTP {status} when asked for its models.", "server_error")
    try:
        answer: object = json.loads(body)
        json.dumps(answer, allow_nan=False)  # it is to be written again
    except (ValueError, RecursionError):
        answer = None
    entries = cast("Entry", answer).get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ApiError(502, "The inference server did not answer with a list of models.", "server_error")
    listed = [cast("Entry", entry) for entry in cast("list[object]", entries) if isinstance(entry, dict)]
    return [entry for entry in listed if isinstance(entry.get("id"), str)]
