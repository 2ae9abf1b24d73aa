"""Reports whether the process is alive, and whether batches can be created and run."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from activities.store.object_store import ObjectStore, StoreError
from api.gateway.interface import Gateway

_LIMIT = 2.0
_ANSWER = {"content": {"application/json": {"schema": {"type": "object"}}}}
_READY: dict[int | str, dict[str, Any]] = {200: _ANSWER, 503: {"description": "What is missing", **_ANSWER}}


def health_router(store: ObjectStore, gateway: Gateway) -> APIRouter:
    router = APIRouter(tags=["Health"])

    async def health() -> Response:
        """Report that the process is alive. Other services are not called: their outages must not restart this one."""
        return Response()

    async def ready() -> Response:
        store_misses, gateway_misses = await asyncio.gather(_missing_of(store), gateway.missing())
        missing = store_misses + gateway_misses
        if missing:
            return JSONResponse({"status": "not ready", "missing": missing}, status_code=503)
        return JSONResponse({"status": "ready"})

    router.get("/health", response_class=Response)(health)
    router.get("/ready", responses=_READY)(ready)
    return router


async def _missing_of(store: ObjectStore) -> list[str]:
    try:
        async with asyncio.timeout(_LIMIT):
            await asyncio.to_thread(store.check)
    except TimeoutError:
        return ["the file store does not answer"]
    except StoreError as error:
        return [f"the file store cannot be used: {error}"]
    return []
