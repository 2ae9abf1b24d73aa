"""A gateway without Temporal, over the same store as the API."""

from __future__ import annotations

import time
from collections.abc import Sequence

from activities.records.catalog import Catalog
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from api.gateway.interface import (
    BatchHasEndedError,
    BatchIsRunningError,
    BatchView,
    IdempotencyConflictError,
    Progress,
    TemporalUnavailableError,
)
from workflows.ids import BatchRef
from workflows.types import BatchPhase, BatchRecord, BatchSpec, BatchStatus


class FakeGateway:
    def __init__(self, store: ObjectStore) -> None:
        self._catalog = Catalog(store)
        self.down = False
        self.misses: list[str] = []
        self.created: list[BatchSpec] = []

    async def create(self, spec: BatchSpec, *, idempotent: bool) -> BatchView:
        self._check()
        if idempotent:
            try:
                record = self._catalog.get_batch(spec.ref)
            except ObjectNotFoundError:
                pass
            else:
                if not record.spec.is_same_create_as(spec):
                    raise IdempotencyConflictError
                return self._view(record)
        self.created.append(spec)
        self._catalog.create_batch(spec)
        return self._view(BatchRecord(spec=spec, status=BatchStatus()))

    async def view(self, record: BatchRecord) -> BatchView:
        return self._view(record)

    async def glances(self, records: Sequence[BatchRecord]) -> list[BatchView]:
        return [self._view(record) for record in records]  # as they are recorded

    async def find(self, ref: BatchRef) -> BatchView:
        record = self._catalog.get_batch(ref)
        if record.deleted_at is not None:
            raise ObjectNotFoundError(ref.batch_id)
        return await self.view(record)

    async def cancel(self, ref: BatchRef) -> BatchView:
        self._check()
        record = self._catalog.get_batch(ref)
        status = record.status
        if status.phase.is_terminal and status.phase != BatchPhase.CANCELLED:
            raise BatchHasEndedError(status.phase)
        if status.cancelling_at is None:
            record = self.set_status(record, status.model_copy(update={"cancelling_at": int(time.time())}))
        return self._view(record)

    async def set_paused(self, ref: BatchRef, paused: bool) -> BatchView:
        self._check()
        record = self._catalog.get_batch(ref)
        if record.status.phase.is_terminal:
            raise BatchHasEndedError(record.status.phase)
        at = int(time.time()) if paused else None
        return self._view(self.set_status(record, record.status.model_copy(update={"paused_at": at})))

    async def delete(self, ref: BatchRef) -> None:
        record = self._catalog.get_batch(ref)
        if not record.status.phase.is_terminal:
            raise BatchIsRunningError
        self._catalog.delete_batch(record)

    async def count_by_status(self) -> dict[str, int]:
        self._check()
        return {"in_progress": len(self.created)}

    async def missing(self) -> list[str]:
        return self.misses

    def set_status(self, record: BatchRecord, status: BatchStatus) -> BatchRecord:
        record = BatchRecord(spec=record.spec, status=status)
        save = self._catalog.save_final if status.phase.is_terminal else self._catalog.save_running
        save(record)
        return record

    def _check(self) -> None:
        if self.down:
            raise TemporalUnavailableError("Temporal at 127.0.0.1:1 does not answer")

    def _view(self, record: BatchRecord) -> BatchView:
        return BatchView(record, None if record.status.phase.is_terminal else Progress(in_flight=3))
