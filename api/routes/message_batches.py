"""Anthropic's Message Batches API, for all batches of the endpoint ``/v1/messages``, whichever API created them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from functools import partial
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from activities.records.catalog import Catalog, FileRecord
from activities.records.keys import content_key
from activities.settings import Settings
from activities.store.object_store import ObjectNotFoundError, ObjectStore, StoreError
from api.gateway.interface import BatchHasEndedError, BatchIsRunningError, BatchView, Gateway
from api.http.auth import Caller, CallerOf, Tenant
from api.http.bodies import JsonRoute
from api.http.download import Reader, ReaderResponse
from api.http.errors import ApiError, shown
from api.http.message_schemas import (
    BATCHES_PATH,
    MessageBatch,
    MessageBatchDeleted,
    MessageBatchList,
    MessageError,
    batch_id_of,
    message_batch,
    message_batch_id,
)
from api.http.schemas import CreateBatch, IdempotencyKey, error_responses, request_body
from api.routes.creates import CreateCall, Creates
from api.routes.files import BATCH_FILE_LIFETIME, new_file_id, publish_file
from api.routes.message_input import ReceivedRequests, receive_requests
from api.routes.message_results import open_results
from api.routes.stored_bytes import StoredBytes, form_of
from workflows.contract import MESSAGES_ENDPOINT
from workflows.ids import BatchRef
from workflows.types import BatchRecord, BatchSpec

WINDOW = "24h"
"""The completion window of every message batch."""
MAX_PAGE = 1000

_ITEM: dict[str, Any] = {
    "type": "object",
    "required": ["custom_id", "params"],
    "properties": {"custom_id": {"type": "string"}, "params": {"type": "object"}},
}
_BODY = request_body("application/json", ["requests"], {"requests": {"type": "array", "items": _ITEM}})
_RESULTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line for each request, in any order.",
        "content": {"application/x-jsonlines": {"schema": {"type": "string"}}},
    }
}


def message_batches_router(
    settings: Settings, store: ObjectStore, gateway: Gateway, stored: StoredBytes, creates: Creates
) -> APIRouter:
    routes = _MessageBatches(settings, store, gateway, stored, creates)
    # The first response names the model, so that the OpenAPI document contains its schema.
    errors = {401: {"model": MessageError}, **_errors(400, 500, "4XX", "5XX")}
    router = APIRouter(prefix=BATCHES_PATH, tags=["Message batches"], route_class=JsonRoute, responses=errors)
    found = _errors(404, 503)
    created, one = _errors(403, 409, 413, 429, 503), "/{message_batch_id}"
    router.post("", responses=created, openapi_extra=_BODY)(routes.create_message_batch)
    router.get("", responses=_errors(503))(routes.list_message_batches)
    router.get(one, responses=found)(routes.retrieve_message_batch)
    router.delete(one, responses=found)(routes.delete_message_batch)
    router.post(f"{one}/cancel", responses=found)(routes.cancel_message_batch)
    results = _RESULTS | found
    router.get(f"{one}/results", response_class=ReaderResponse, responses=results)(routes.message_batch_results)
    return router


_errors = partial(error_responses, model=MessageError)


class _MessageBatches:
    def __init__(
        self, settings: Settings, store: ObjectStore, gateway: Gateway, stored: StoredBytes, creates: Creates
    ) -> None:
        self._settings = settings
        self._store = store
        self._catalog = Catalog(store)
        self._gateway = gateway
        self._stored = stored
        self._creates = creates

    async def create_message_batch(
        self,
        caller: CallerOf,
        call: CreateCall,
        idempotency_key: IdempotencyKey = None,
    ) -> MessageBatch:
        async with self._input_file(caller, call.request, idempotency_key) as spec:
            view = await self._creates.start_once(spec, caller, call, has_key=bool(idempotency_key))
            if view.record.spec.input_file_id != spec.input_file_id:  # the batch existed already
                await self._drop_file(caller.tenant, spec.input_file_id)
        return message_batch(view, time.time())

    @contextlib.asynccontextmanager
    async def _input_file(self, caller: Caller, request: Request, key: str | None) -> AsyncGenerator[BatchSpec]:
        """Store the requests in a body as a file and yield the specification of their batch.

        The file is deleted again if the block raises ``ApiError``.
        """
        settings, file_id = self._settings, new_file_id()
        form = form_of(caller)
        async with (
            self._stored.arriving(request, form, settings.max_message_bytes),
            receive_requests(
                request,
                self._store,
                content_key(caller.tenant, file_id),
                max_bytes=settings.max_message_bytes,
                max_requests=settings.max_message_requests,
                max_line_bytes=settings.max_line_bytes,
                arrived=form.arrived,
            ) as received,
        ):
            body = CreateBatch(
                input_file_id=file_id, endpoint=MESSAGES_ENDPOINT, completion_window=WINDOW, idempotency_key=None
            )
            spec = _of_messages(self._creates.spec(caller, body, key), received)
            file = _file_record(spec, received)
            async with self._stored.reserve(form, file.bytes):
                await publish_file(self._catalog, caller.tenant, file, received.commit)
        try:
            yield spec
        except ApiError:
            await self._drop_file(caller.tenant, file_id)
            raise

    async def _drop_file(self, tenant: str, file_id: str) -> None:
        with contextlib.suppress(StoreError):  # if the deletion fails, the file expires
            await asyncio.to_thread(self._catalog.delete_file, tenant, file_id)

    async def list_message_batches(
        self,
        tenant: Tenant,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
        before_id: str | None = None,
        after_id: str | None = None,
    ) -> MessageBatchList:
        if before_id is not None and after_id is not None:
            raise ApiError(400, "before_id and after_id exclude each other.")
        records, has_more = await asyncio.to_thread(self._page, tenant, limit, before_id, after_id)
        views, now = await self._gateway.glances(records), time.time()
        return MessageBatchList.of([message_batch(view, now) for view in views], has_more=has_more)

    async def retrieve_message_batch(self, message_batch_id: str, tenant: Tenant) -> MessageBatch:
        return message_batch(await self._find(tenant, message_batch_id), time.time())

    async def cancel_message_batch(self, message_batch_id: str, tenant: Tenant) -> MessageBatch:
        ref = (await self._find(tenant, message_batch_id)).record.spec.ref
        try:
            return message_batch(await self._gateway.cancel(ref), time.time())
        except BatchHasEndedError:
            raise ApiError(400, f"Batch {shown(message_batch_id)} cannot be canceled: it has ended.") from None

    async def delete_message_batch(self, message_batch_id: str, tenant: Tenant) -> MessageBatchDeleted:
        ref = (await self._find(tenant, message_batch_id)).record.spec.ref
        try:
            await self._gateway.delete(ref)
        except BatchIsRunningError:
            raise _running(message_batch_id, "cannot be deleted") from None
        return MessageBatchDeleted(id=message_batch_id)

    async def message_batch_results(self, message_batch_id: str, tenant: Tenant) -> Response:
        record = (await self._find(tenant, message_batch_id)).record
        if not record.status.phase.is_terminal:
            raise _running(message_batch_id, "has no results yet")
        try:
            reader = Reader(await asyncio.to_thread(open_results, self._catalog, record))
            first = await asyncio.to_thread(reader.next)
        except ObjectNotFoundError:
            message = f"The results of batch {shown(message_batch_id)} are no longer available."
            raise ApiError(404, message) from None
        return ReaderResponse(reader.chunks(first), reader, media_type="application/x-jsonlines")

    async def _find(self, tenant: str, message_batch_id: str) -> BatchView:
        """Return a message batch.

        Raises:
            ApiError: no batch has this id, or it is one of another endpoint.
        """
        with contextlib.suppress(ObjectNotFoundError):
            view = await self._gateway.find(BatchRef(tenant, batch_id_of(message_batch_id)))
            if view.record.spec.endpoint == MESSAGES_ENDPOINT:
                return view
        raise ApiError(404, f"No message batch found with id '{shown(message_batch_id)}'.")

    def _page(
        self, tenant: str, limit: int, before_id: str | None, after_id: str | None
    ) -> tuple[list[BatchRecord], bool]:
        """Return a page of batches, the newest first, and whether more follow. Blocks.

        The page holds the batches that come next after ``after_id`` or just before ``before_id``, or the newest ones.
        """
        entry, given = None, before_id if before_id is not None else after_id
        if given is not None:
            try:
                entry = self._catalog.batch_entry(BatchRef(tenant, batch_id_of(given)))
            except ObjectNotFoundError:
                raise ApiError(400, f"No message batch found with id '{shown(given)}'.") from None
        ascending = before_id is not None
        listed = self._catalog.list_batches(tenant, after=entry, ascending=ascending, messages_only=True)
        page = list(islice(listed, limit + 1))
        has_more = len(page) > limit
        return (page[:limit][::-1] if ascending else page[:limit]), has_more


def _running(message_batch_id: str, what: str) -> ApiError:
    return ApiError(400, f"Batch {shown(message_batch_id)} {what}: it is still in progress.")


def _of_messages(spec: BatchSpec, received: ReceivedRequests) -> BatchSpec:
    """Return ``spec`` with the rules of message batches: a request that cannot be served fails alone."""
    return spec.model_copy(
        update={
            "input_sha256": received.sha256,
            "inline_requests": received.count,
            "max_requests": received.count,
            "max_input_bytes": received.size,
            "unknown_model": "line",
            "strict_error_lines": False,
        }
    )


def _file_record(spec: BatchSpec, received: ReceivedRequests) -> FileRecord:
    return FileRecord(
        id=spec.input_file_id,
        bytes=received.size,
        created_ms=spec.created_ms,
        filename=f"{message_batch_id(spec)}_input.jsonl",
        purpose="batch",
        expires_at=spec.created_at + BATCH_FILE_LIFETIME,
        lines=received.count,
        sha256=received.sha256,
    )
