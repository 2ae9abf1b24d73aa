"""The Batches API."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from activities.catalog import Catalog
from activities.settings import Settings, window_seconds
from activities.storage import ObjectNotFound, ObjectStore, StoreError
from api.auth import Caller, CallerOf, Tenant
from api.bodies import JsonRoute
from api.errors import ApiError, permanent_conflict, shown
from api.limits import BatchPlaces, NoPlace
from api.schemas import (
    Batch,
    BatchList,
    CreateBatch,
    IdempotencyKey,
    RetryCount,
    batch_list,
    batch_object,
    create_batch_model,
    error_responses,
)
from api.views import BatchHasEnded, BatchView, Gateway, IdempotencyConflict
from workflows.contract import inference_task_queue
from workflows.ids import batch_id_for_key, create_digest
from workflows.types import BatchRecord, BatchSpec

log = logging.getLogger("everbatch.api")

MAX_PAGE = 100
RETRY_SECONDS = 900
"""How long a create may be looked for by its retry. The SDK waits 600 s for an answer before it tries again."""


def batches_router(settings: Settings, store: ObjectStore, gateway: Gateway) -> APIRouter:
    routes = _Batches(settings, store, gateway)
    router = APIRouter(prefix="/v1/batches", tags=["Batches"], route_class=JsonRoute, responses=error_responses(401))

    async def create_batch(
        body: CreateBatch,
        caller: CallerOf,
        idempotency_key: IdempotencyKey = None,
        retry_count: RetryCount = None,
    ) -> Batch:
        return await routes.create_batch(body, caller, idempotency_key, retry_count)

    # FastAPI reads the model off the function, and this server's settings are part of the model.
    create_batch.__annotations__["body"] = create_batch_model(settings.endpoints, settings.windows)
    ended = error_responses(404, 409, 503)
    router.add_api_route(
        "", create_batch, methods=["POST"], response_model=Batch, responses=error_responses(409, 413, 429, 503)
    )
    router.add_api_route(
        "", routes.list_batches, methods=["GET"], response_model=BatchList, responses=error_responses(503)
    )
    router.add_api_route(
        "/{batch_id}",
        routes.retrieve_batch,
        methods=["GET"],
        response_model=Batch,
        responses=error_responses(404, 503),
    )
    for name, action in (
        ("cancel", routes.cancel_batch),
        ("pause", routes.pause_batch),
        ("resume", routes.resume_batch),
    ):
        router.add_api_route(f"/{{batch_id}}/{name}", action, methods=["POST"], response_model=Batch, responses=ended)
    return router


class _Batches:
    def __init__(self, settings: Settings, store: ObjectStore, gateway: Gateway) -> None:
        self._settings = settings
        self._catalog = Catalog(store)
        self._gateway = gateway
        self._places = BatchPlaces(self._catalog, gateway)
        self._webhooks = settings.webhook_endpoints()

    async def create_batch(
        self, body: CreateBatch, caller: Caller, idempotency_key: str | None, retry_count: str | None
    ) -> Batch:
        key = idempotency_key or body.idempotency_key
        spec = _spec(self._settings, self._webhooks.names_for(caller.tenant), caller, key, body)
        is_repeated = False
        if key is None and retry_count is not None:
            spec, is_repeated = await asyncio.to_thread(self._noted, spec, _is_retry(retry_count))
        may_exist = key is not None or is_repeated
        most = caller.limits.max_running_batches if caller.limits else None
        try:
            async with self._places.place(spec, most, may_exist=may_exist):
                return batch_object(await self._gateway.create(spec, idempotent=may_exist))
        except IdempotencyConflict:
            message = "Conflict: this idempotency key was used for a batch with other parameters."
            raise permanent_conflict(message, code="idempotency_conflict") from None
        except NoPlace:
            if key is None and retry_count is not None:
                await asyncio.to_thread(self._catalog.forget_create, spec)
            raise

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

    def _noted(self, spec: BatchSpec, is_retry: bool) -> tuple[BatchSpec, bool]:
        """The spec with the id that all tries of one call share, and whether an earlier try has chosen it.

        A try may be lost anywhere: before its workflow is started, or just before its answer arrives. So its id is
        noted first, and Temporal, which starts an id once, decides what the next try meets.
        """
        if is_retry:
            earlier = self._catalog.find_create(spec.tenant, spec.digest, spec.created_ms - RETRY_SECONDS * 1000)
            if earlier:
                return spec.model_copy(update={"batch_id": earlier[0], "created_ms": earlier[1]}), True
        try:
            self._catalog.note_create(spec)
        except StoreError as error:
            log.warning("batch %s is not noted, so a retry of its create would make another: %s", spec.batch_id, error)
        return spec, False

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


def _is_retry(count: str) -> bool:
    return count.isascii() and count.isdigit() and count.strip("0") != ""


def _no_batch(batch_id: str) -> ApiError:
    return ApiError(404, f"No batch found with id '{shown(batch_id)}'.")


def _spec(
    settings: Settings, webhooks: list[str], caller: Caller, idempotency_key: str | None, body: CreateBatch
) -> BatchSpec:
    tenant, limits = caller
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
        strict_error_lines=settings.strict_error_lines,
        heartbeat_timeout=settings.heartbeat_timeout,
        inference_task_queue=inference_task_queue(settings.task_queue),
        counted=limits is not None,
        max_queued_requests=limits.max_queued_requests if limits else None,
        fairness_weight=limits.fairness_weight if limits else 1.0,
        webhooks=webhooks,
        **expiry,
    )
