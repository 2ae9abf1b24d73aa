"""The Batches API."""

from __future__ import annotations

import asyncio
import time
import uuid
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from activities.catalog import Catalog
from activities.settings import Settings, window_seconds
from activities.storage import ObjectNotFound, ObjectStore
from api.auth import Tenant
from api.bodies import JsonRoute
from api.errors import ApiError, invalid_value, permanent_conflict, shown
from api.schemas import Batch, BatchList, CreateBatch, IdempotencyKey, batch_list, batch_object
from api.views import BatchHasEnded, BatchView, Gateway, IdempotencyConflict
from workflows.contract import inference_task_queue
from workflows.ids import batch_id_for_key, create_digest
from workflows.types import BatchRecord, BatchSpec

MAX_PAGE = 100


def batches_router(settings: Settings, store: ObjectStore, gateway: Gateway) -> APIRouter:
    routes = _Batches(settings, store, gateway)
    router = APIRouter(prefix="/v1/batches", tags=["Batches"], route_class=JsonRoute)
    router.add_api_route("", routes.create_batch, methods=["POST"], response_model=Batch)
    router.add_api_route("", routes.list_batches, methods=["GET"], response_model=BatchList)
    router.add_api_route("/{batch_id}", routes.retrieve_batch, methods=["GET"], response_model=Batch)
    router.add_api_route("/{batch_id}/cancel", routes.cancel_batch, methods=["POST"], response_model=Batch)
    router.add_api_route("/{batch_id}/pause", routes.pause_batch, methods=["POST"], response_model=Batch)
    router.add_api_route("/{batch_id}/resume", routes.resume_batch, methods=["POST"], response_model=Batch)
    return router


class _Batches:
    def __init__(self, settings: Settings, store: ObjectStore, gateway: Gateway) -> None:
        self._settings = settings
        self._catalog = Catalog(store)
        self._gateway = gateway

    async def create_batch(self, body: CreateBatch, tenant: Tenant, idempotency_key: IdempotencyKey = None) -> Batch:
        key = idempotency_key or body.idempotency_key
        if body.completion_window not in self._settings.windows:
            raise invalid_value("completion_window", body.completion_window, self._settings.windows)
        spec = _spec(self._settings, tenant, key, body)
        try:
            return batch_object(await self._gateway.create(spec, idempotent=key is not None))
        except IdempotencyConflict:
            message = "Conflict: this idempotency key was used for a batch with other parameters."
            raise permanent_conflict(message, code="idempotency_conflict") from None

    async def list_batches(
        self,
        tenant: Tenant,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> BatchList:
        records = await asyncio.to_thread(self._page, tenant, limit + 1, order == "asc", after)
        views = await asyncio.gather(*map(self._view, records[:limit]))
        return batch_list(views, has_more=len(records) > limit)

    async def retrieve_batch(self, batch_id: str, tenant: Tenant) -> Batch:
        try:
            return batch_object(await self._gateway.find(tenant, batch_id))
        except ObjectNotFound:
            raise _no_batch(batch_id) from None

    async def cancel_batch(self, batch_id: str, tenant: Tenant) -> Batch:
        try:
            return batch_object(await self._gateway.cancel(tenant, batch_id))
        except ObjectNotFound:
            raise _no_batch(batch_id) from None
        except BatchHasEnded as error:
            raise permanent_conflict(f"Cannot cancel a batch with status '{error.status.value}'.") from None

    async def pause_batch(self, batch_id: str, tenant: Tenant) -> Batch:
        """Ours, beyond OpenAI's API: send nothing more until resumed. The completion window runs on."""
        return await self._set_paused(tenant, batch_id, True)

    async def resume_batch(self, batch_id: str, tenant: Tenant) -> Batch:
        """Ours: go on with a paused batch."""
        return await self._set_paused(tenant, batch_id, False)

    async def _set_paused(self, tenant: str, batch_id: str, paused: bool) -> Batch:
        try:
            return batch_object(await self._gateway.set_paused(tenant, batch_id, paused))
        except ObjectNotFound:
            raise _no_batch(batch_id) from None
        except BatchHasEnded as error:
            verb = "pause" if paused else "resume"
            raise permanent_conflict(f"Cannot {verb} a batch with status '{error.status.value}'.") from None

    async def _view(self, record: BatchRecord) -> BatchView:
        if record.status.phase.is_terminal:
            return BatchView(record, progress=None)
        return await self._gateway.view(record)

    def _page(self, tenant: str, limit: int, ascending: bool, after: str | None) -> list[BatchRecord]:
        try:
            position = self._catalog.get_batch(tenant, after) if after is not None else None
        except ObjectNotFound:
            raise ApiError(400, f"No batch found with id '{shown(after)}'.", param="after") from None
        return list(islice(self._catalog.list_batches(tenant, after=position, ascending=ascending), limit))


def _no_batch(batch_id: str) -> ApiError:
    return ApiError(404, f"No batch found with id '{shown(batch_id)}'.")


def _spec(settings: Settings, tenant: str, idempotency_key: str | None, body: CreateBatch) -> BatchSpec:
    # The digest is over what the client wrote, so a default that changes later makes no conflict.
    parameters = body.model_dump(exclude={"idempotency_key"})
    expiry = {} if body.output_expires_after is None else {"output_expires_after": body.output_expires_after.seconds}
    return BatchSpec(
        batch_id=batch_id_for_key(tenant, idempotency_key) if idempotency_key else f"batch_{uuid.uuid4().hex}",
        tenant=tenant,
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        window_seconds=window_seconds(body.completion_window),
        created_ms=time.time_ns() // 1_000_000,
        digest=create_digest(parameters),
        metadata=body.metadata,
        max_requests=settings.max_requests,
        max_input_bytes=settings.max_input_bytes,
        max_attempts=settings.max_attempts,
        unknown_model=settings.unknown_model,
        mixed_models=settings.mixed_models,
        heartbeat_timeout=settings.heartbeat_timeout,
        inference_task_queue=inference_task_queue(settings.task_queue),
        **expiry,
    )
