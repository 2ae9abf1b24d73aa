"""The Batches API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from activities.error_messages import ErrorMessages
from activities.input_addresses import allowed_address, is_address
from activities.records.catalog import Catalog
from activities.records.read_ahead import read_ahead
from activities.settings import Settings
from activities.store.object_store import ObjectNotFoundError, ObjectStore, StoreError
from api.gateway.interface import BatchHasEndedError, BatchView, Gateway
from api.http.auth import Caller, CallerOf, PathBatch, Tenant
from api.http.bodies import JsonRoute
from api.http.errors import ApiError, no_batch_found, permanent_conflict, shown
from api.http.schemas import (
    Batch,
    BatchList,
    CreateBatch,
    IdempotencyKey,
    RetryBatch,
    batch_list,
    batch_object,
    create_batch_model,
    error_responses,
)
from api.routes.creates import Call, CreateCall, Creates
from api.routes.partial_files import PartialFiles, PartialHeader
from api.routes.retries import RetryRules, create_of, retry_spec
from workflows.ids import BatchRef
from workflows.types import BatchRecord

MAX_PAGE = 100


def batches_router(
    settings: Settings, store: ObjectStore, gateway: Gateway, creates: Creates, partial: PartialFiles
) -> APIRouter:
    routes = _Batches(store, gateway, creates, partial)
    router = APIRouter(prefix="/v1/batches", tags=["Batches"], route_class=JsonRoute, responses=error_responses(401))

    async def create_batch(
        body: CreateBatch, caller: CallerOf, call: CreateCall, idempotency_key: IdempotencyKey = None
    ) -> Batch:
        given = body.input_file_id
        if is_address(given) and not allowed_address(given, settings.prefixes, caller.tenant):
            raise _not_allowed(given)
        return await routes.create_batch(body, caller, call, idempotency_key or body.idempotency_key)

    # FastAPI takes the model from the function's annotation, and the model depends on this server's settings.
    create_batch.__annotations__["body"] = create_batch_model(settings.endpoints, settings.windows)
    ended = error_responses(404, 409, 503)

    router.post("", responses=error_responses(409, 413, 429, 503))(create_batch)
    # These two render their responses themselves.
    router.get("", response_model=BatchList, responses=error_responses(503))(routes.list_batches)
    router.get("/{batch_id}", response_model=Batch, responses=error_responses(404, 503))(routes.retrieve_batch)
    router.post("/{batch_id}/cancel", responses=ended)(routes.cancel_batch)
    router.post("/{batch_id}/pause", responses=ended)(routes.pause_batch)
    router.post("/{batch_id}/resume", responses=ended)(routes.resume_batch)
    router.post("/{batch_id}/retry", responses=error_responses(404, 409, 413, 429, 503))(routes.retry_batch)
    return router


class _Batches:
    def __init__(self, store: ObjectStore, gateway: Gateway, creates: Creates, partial: PartialFiles) -> None:
        self._catalog = Catalog(store)
        self._partial = partial
        self._retries = RetryRules(self._catalog)
        self._error_messages = ErrorMessages(self._catalog)
        self._gateway = gateway
        self._creates = creates

    async def create_batch(self, body: CreateBatch, caller: Caller, call: Call, key: str | None) -> Batch:
        spec = self._creates.spec(caller, body, key)
        if key and (file := await asyncio.to_thread(self._catalog.find_file, caller.tenant, body.input_file_id)):
            spec = spec.model_copy(update={"input_sha256": file.sha256})
        view = await self._creates.start_once(spec, caller, call, has_key=bool(key), webhook=body.webhook)
        return batch_object(view)

    async def retry_batch(
        self, ref: PathBatch, caller: CallerOf, body: RetryBatch | None = None, idempotency_key: IdempotencyKey = None
    ) -> Batch:
        """Create a batch that sends the failed requests of an ended batch again. This extends OpenAI's API."""
        body = body or RetryBatch()
        with no_batch_found(ref):
            first = (await self._gateway.find(ref)).record
        retry = await asyncio.to_thread(self._retries.claim, first, body, idempotency_key)
        spec = retry_spec(self._creates.spec(caller, create_of(first.spec, body.webhook)), first.spec, retry)
        try:
            return batch_object(await self._creates.start(spec, caller, may_exist=True, webhook=body.webhook))
        except ApiError:  # the retry was not started; after any other error it may have been
            await asyncio.to_thread(self._retries.release, first, retry)
            raise

    async def list_batches(
        self,
        tenant: Tenant,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        partial: PartialHeader = None,
    ) -> Response:
        records = await asyncio.to_thread(self._page, tenant, limit + 1, order == "asc", after)
        views = await self._gateway.glances(records[:limit])
        retried_by = await asyncio.to_thread(self._all_retried_by, views)
        is_partial = self._partial.wanted(partial)
        return _rendered(batch_list(views, retried_by, has_more=len(records) > limit, partial=is_partial))

    async def retrieve_batch(self, ref: PathBatch, partial: PartialHeader = None) -> Response:
        with no_batch_found(ref):
            view = await self._gateway.find(ref)
        return _rendered(await self._object(view, partial=self._partial.wanted(partial)))

    async def _object(self, view: BatchView, *, partial: bool = False) -> Batch:
        """Return the batch object with what only the store knows: the batch that retries it, and its error messages."""
        retried_by = await asyncio.to_thread(self._retries.retried_by, view.record)
        messages = await asyncio.to_thread(self._messages, view.record) if view.record.status.error_summary else {}
        return batch_object(view, retried_by, partial=partial, messages=messages)

    def _messages(self, record: BatchRecord) -> dict[str, str]:
        try:
            return self._error_messages.of(record)
        except StoreError:  # everything else in the response comes from Temporal
            return {}

    async def cancel_batch(self, ref: PathBatch) -> Batch:
        return await self._changed(ref, "cancel", self._gateway.cancel(ref))

    async def pause_batch(self, ref: PathBatch) -> Batch:
        """Pause a batch. This extends OpenAI's API.

        No requests are sent until the batch is resumed. Its completion window continues meanwhile.
        """
        return await self._changed(ref, "pause", self._gateway.set_paused(ref, True))

    async def resume_batch(self, ref: PathBatch) -> Batch:
        """Resume a paused batch. This extends OpenAI's API."""
        return await self._changed(ref, "resume", self._gateway.set_paused(ref, False))

    async def _changed(self, ref: BatchRef, verb: str, change: Awaitable[BatchView]) -> Batch:
        try:
            with no_batch_found(ref):
                return await self._object(await change)
        except BatchHasEndedError as error:
            raise permanent_conflict(f"Cannot {verb} a batch with status '{error.status.value}'.") from None

    def _all_retried_by(self, views: Sequence[BatchView]) -> list[str | None]:
        """Return for each batch the id of the batch that retries it. Blocks."""
        at_once = self._catalog.store.reads_at_once
        return list(read_ahead(lambda view: self._retries.retried_by(view.record), views, at_once))

    def _page(self, tenant: str, limit: int, ascending: bool, after: str | None) -> list[BatchRecord]:
        try:
            position = self._catalog.batch_entry(BatchRef(tenant, after)) if after is not None else None
        except ObjectNotFoundError:
            raise ApiError(400, f"No batch found with id '{shown(after)}'.", param="after") from None
        return list(islice(self._catalog.list_batches(tenant, after=position, ascending=ascending), limit))


def _rendered(answer: Batch | BatchList) -> Response:
    """Return a JSON response that FastAPI does not validate: that costs more than building it, and clients poll."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _not_allowed(address: str) -> ApiError:
    message = (
        f"The input '{shown(address)}' is below none of the addresses that this server's operator allows "
        "(EVERBATCH_INPUT_PREFIXES). Upload it as a file instead."
    )
    return ApiError(400, message, code="invalid_value", param="input_file_id")
