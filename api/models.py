"""The models of the inference server, as it lists them."""

from __future__ import annotations

import json
import logging
from typing import Protocol, cast

from fastapi import APIRouter
from starlette.responses import Response

from activities.inference import UpstreamUnavailable
from api.errors import RETRY_AFTER, ApiError, shown

log = logging.getLogger("everbatch.api")


class ModelsProxy(Protocol):
    async def get_models_raw(self) -> tuple[int, bytes]:
        """Status and body of the inference server's ``GET /models``.

        Raises:
            UpstreamUnavailable: it does not answer.
        """
        ...


def models_router(proxy: ModelsProxy) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["Models"])

    async def list_models() -> Response:
        body, _ = await _models(proxy)
        return Response(body, media_type="application/json")

    async def retrieve_model(model: str) -> Response:
        _, entries = await _models(proxy)
        for entry in entries:
            if isinstance(entry, dict) and cast("dict[str, object]", entry).get("id") == model:
                return Response(json.dumps(entry), media_type="application/json")
        message = f"The model '{shown(model)}' does not exist."
        raise ApiError(404, message, code="model_not_found", param="model")

    router.add_api_route("", list_models, methods=["GET"])
    # Names of models have slashes in them.
    router.add_api_route("/{model:path}", retrieve_model, methods=["GET"])
    return router


async def _models(proxy: ModelsProxy) -> tuple[bytes, list[object]]:
    """The list of models as the inference server wrote it, and the entries in it."""
    try:
        status, body = await proxy.get_models_raw()
    except UpstreamUnavailable as error:
        log.warning("%s", error)
        raise ApiError(503, "The inference server does not answer.", "server_error", headers=RETRY_AFTER) from None
    if status != 200:
        # Its 401 is about our key, its 404 about our address: neither is the client's to mend.
        raise ApiError(502, f"The inference server answered HTTP {status} when asked for its models.", "server_error")
    try:
        answer: object = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    entries = cast("dict[str, object]", answer).get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ApiError(502, "The inference server did not answer with a list of models.", "server_error")
    return body, cast("list[object]", entries)
