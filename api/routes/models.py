"""The models of all upstreams: those that the upstreams list, and those that the settings name."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Protocol, cast

from fastapi import APIRouter
from starlette.responses import Response

from activities.upstreams.config import Upstream, is_pattern
from activities.upstreams.errors import UpstreamUnavailableError
from api.http.errors import RETRY_AFTER, ApiError, shown
from api.http.schemas import error_responses

log = logging.getLogger("everbatch.api")

Entry = dict[str, object]


class ModelsProxy(Protocol):
    @property
    def upstream(self) -> Upstream: ...

    async def get_models_raw(self) -> tuple[int, bytes]:
        """Return the status and body of the upstream's ``GET /models``.

        Raises:
            UpstreamUnavailableError: the upstream does not answer.
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
    router.get("", responses=answers)(list_models)
    # Names of models may contain slashes.
    router.get("/{model:path}", responses=answers | error_responses(404))(retrieve_model)
    return router


async def _models(proxies: Sequence[ModelsProxy]) -> list[Entry]:
    """Return each model once.

    If an upstream fails, only the models that its settings name are listed.

    Raises:
        ApiError: an upstream failed, and no model is known at all.
    """
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
    """Return the models of one upstream, those that it lists first, and the error if it could not list any."""
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
    """Return the models as the upstream lists them.

    Raises:
        ApiError: the upstream does not answer, or not with a list of models.
    """
    try:
        status, body = await proxy.get_models_raw()
    except UpstreamUnavailableError as error:
        log.warning("%s", error)
        raise ApiError(503, "The inference server does not answer.", "server_error", headers=RETRY_AFTER) from None
    if status != 200:
        # The upstream's 401 concerns our key, and its 404 our URL: the client can fix neither.
        raise ApiError(502, f"The inference server answered HTTP {status} when asked for its models.", "server_error")
    try:
        answer: object = json.loads(body)
        json.dumps(answer, allow_nan=False)  # it has to be serialized again
    except (ValueError, RecursionError):
        answer = None
    entries = cast("Entry", answer).get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ApiError(502, "The inference server did not answer with a list of models.", "server_error")
    listed = [cast("Entry", entry) for entry in cast("list[object]", entries) if isinstance(entry, dict)]
    return [entry for entry in listed if isinstance(entry.get("id"), str)]
