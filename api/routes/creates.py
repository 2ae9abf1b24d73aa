"""Creation of batches: their specification, the limit of their tenant, and requests that a client sends again."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Annotated, Any, Final, NamedTuple

from fastapi import BackgroundTasks, Depends
from starlette.requests import Request

from activities.completion_windows import window_seconds
from activities.records.batch_webhooks import BATCH_WEBHOOK, BatchWebhook, BatchWebhooks
from activities.records.catalog import Catalog
from activities.records.create_notes import CreateNote, CreateNotes
from activities.settings import Settings
from activities.store.object_store import ObjectNotFoundError, ObjectStore, StoreError
from api.gateway.interface import BatchView, Gateway, IdempotencyConflictError
from api.http.auth import Caller
from api.http.errors import ApiError, permanent_conflict
from api.http.schemas import CreateBatch, RetryCount, Webhook
from api.routes.limits import BatchLimit, TooManyBatchesError
from workflows.contract import inference_task_queue
from workflows.ids import BatchRef, batch_id_for_key, create_digest
from workflows.types import BatchSpec

log = logging.getLogger("everbatch.api")

RULES: Final = (
    *("max_requests", "max_input_bytes", "max_line_bytes"),
    *("unknown_model", "mixed_models", "strict_error_lines"),
)
"""The settings under which the input of a batch is accepted."""
_DEFAULT_READ_SECONDS = 600
"""Time in seconds for which OpenAI's SDK waits for a response before it retries, unless a header says otherwise."""
_MAX_READ_SECONDS = 3600
_PAUSE_SECONDS = 125
"""Longest pause in seconds before the SDK retries, with a margin."""


class Call(NamedTuple):
    """One HTTP request to create a batch."""

    request: Request
    answered: BackgroundTasks
    """Tasks that run after the response is sent."""
    tries: int | None
    """Number of times that a stock SDK has sent this request before; ``None`` if the client does not count them."""

    @property
    def read_seconds(self) -> int:
        """The seconds for which the SDK waits for this response. Python's and Node's SDKs use different headers."""
        names = ("x-stainless-read-timeout", "x-stainless-timeout")
        found = (_count_of(self.request.headers.get(name)) for name in names)
        return min(next((seconds for seconds in found if seconds), _DEFAULT_READ_SECONDS), _MAX_READ_SECONDS)


async def _call(request: Request, answered: BackgroundTasks, retry_count: RetryCount = None) -> Call:
    return Call(request, answered, _count_of(retry_count))


CreateCall = Annotated[Call, Depends(_call)]


class Creates:
    """Starts batches for the routes that create them."""

    def __init__(self, settings: Settings, store: ObjectStore, gateway: Gateway) -> None:
        self._settings = settings
        self._notes = CreateNotes(store)
        self._gateway = gateway
        self._limit = BatchLimit(Catalog(store), gateway)
        self._webhooks = settings.webhook_endpoints()
        self._own_webhooks = BatchWebhooks(store)

    def spec(self, caller: Caller, body: CreateBatch, key: str | None = None) -> BatchSpec:
        """Return the specification of a new batch. ``key`` is its idempotency key, from which its id is derived."""
        (tenant, limits), settings = caller, self._settings
        # The digest covers what the client sent, so that a default that changes later causes no conflict. The input
        # file is left out because it counts by its content, and the webhook's secret because not even a digest of it
        # may enter Temporal.
        parameters = body.model_dump(exclude={"idempotency_key": True, "input_file_id": True, "webhook": {"secret"}})
        expires = body.output_expires_after
        expiry: dict[str, Any] = {} if expires is None else {"output_expires_after": expires.seconds}
        webhooks = self._webhooks.names_for(tenant)
        return BatchSpec(
            batch_id=batch_id_for_key(tenant, key) if key else f"batch_{uuid.uuid4().hex}",
            tenant=tenant,
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            completion_window=body.completion_window,
            window_seconds=window_seconds(body.completion_window),
            created_ms=time.time_ns() // 1_000_000,
            digest=create_digest(parameters),
            metadata=body.metadata,
            max_attempts=settings.max_attempts,
            heartbeat_timeout=settings.heartbeat_timeout,
            inference_task_queue=inference_task_queue(settings.task_queue),
            counts_towards_limits=limits is not None,
            max_queued_requests=limits.max_queued_requests if limits else None,
            fairness_weight=limits.fairness_weight if limits else 1.0,
            webhooks=[*webhooks, BATCH_WEBHOOK] if body.webhook else webhooks,
            **{name: getattr(settings, name) for name in RULES},
            **expiry,
        )

    async def start(
        self, spec: BatchSpec, caller: Caller, *, may_exist: bool, webhook: Webhook | None = None
    ) -> BatchView:
        """Start a batch, or return the existing one if ``may_exist`` is set. ``webhook`` is for this batch only.

        Raises:
            ApiError: the tenant has reached its maximum number of running batches, or the idempotency key belongs to
                a batch with different parameters.
        """
        maximum = caller.limits.max_running_batches if caller.limits else None
        try:
            async with self._limit.reserve(spec, maximum, may_exist=may_exist):
                # An earlier try may have stored another webhook, which counts only if it started the batch.
                if webhook and not (may_exist and await self._exists(spec.ref)):
                    own = BatchWebhook(webhook.url, webhook.secret, list(webhook.events) if webhook.events else None)
                    await asyncio.to_thread(self._own_webhooks.save, spec.ref, own)
                return await self._gateway.create(spec, idempotent=may_exist)
        except IdempotencyConflictError:
            raise key_conflict() from None

    async def _exists(self, ref: BatchRef) -> bool:
        try:
            await self._gateway.find(ref)
        except ObjectNotFoundError:
            return False
        return True

    async def start_once(
        self, spec: BatchSpec, caller: Caller, call: Call, *, has_key: bool, webhook: Webhook | None = None
    ) -> BatchView:
        """Start a batch, or return the one that an earlier try of the same call has started.

        Tries are matched by their idempotency key or, for a stock SDK, which sends none, by their content. Then a retry
        returns the batch of an earlier try only if that try arrived and its response was not delivered. If it never
        arrived, the retry creates a batch of its own, whatever was created before.

        Raises:
            ApiError: as in :meth:`start`.
        """
        if has_key or call.tries is None:
            return await self.start(spec, caller, may_exist=has_key, webhook=webhook)
        note, is_repeated = await asyncio.to_thread(self._noted, spec, call.tries, call.read_seconds)
        if note and is_repeated:
            spec = spec.model_copy(update={"batch_id": note.batch_id, "created_ms": note.created_ms})
        try:
            view = await self.start(spec, caller, may_exist=is_repeated, webhook=webhook)
        except TooManyBatchesError:
            if note:
                await asyncio.to_thread(self._notes.remove, note)
            raise
        # A client that has disconnected does not get this response, and its retry has to find the batch.
        if note and not await call.request.is_disconnected():
            call.answered.add_task(self._forget, note)  # runs once the response has been sent
        return view

    def _noted(self, spec: BatchSpec, tries: int, read_seconds: int) -> tuple[CreateNote | None, bool]:
        """Return the note of a request, and whether an earlier try wrote it. The note is ``None`` if the store fails.

        A try may be lost anywhere: before its workflow is started, or just before its response arrives. So its batch
        id is noted first, and Temporal, which starts a workflow id only once, decides what the next try finds.
        """
        try:
            for note in self._notes.find(spec) if tries else ():
                longest = (tries - note.tries) * (read_seconds + _PAUSE_SECONDS) * 1000
                if note.tries < tries and note.created_ms >= spec.created_ms - longest:
                    return note, True
            return self._notes.add(spec, tries), False
        except StoreError as error:
            log.warning(
                "could not note the create of batch %s; a retry would create another batch: %s", spec.batch_id, error
            )
            return None, False

    async def _forget(self, note: CreateNote) -> None:
        try:
            await asyncio.to_thread(self._notes.remove, note)
        except StoreError as error:
            log.warning("could not note that the create of batch %s was answered: %s", note.batch_id, error)


def key_conflict() -> ApiError:
    """Return the error for an idempotency key that belongs to a different batch."""
    text = (
        "Conflict: this idempotency key was already used for a batch with different parameters, or for a file "
        "with different content. Use a new key for a different batch."
    )
    return permanent_conflict(text, code="idempotency_conflict")


def _count_of(text: str | None) -> int | None:
    """Return the number in a header, or ``None`` if there is none of at most five digits."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 6 else None
