"""The activity of the janitor: deletes objects whose time has come and that no client can ask for any more.

Code that creates an object first writes a reminder (:meth:`activities.records.catalog.Catalog.remind`), so that objects
that a crash leaves behind are found without listing the store. A reminder is deleted last, so that an interrupted
attempt can be repeated.

A batch has a reminder from before its start. If its run was terminated or lost, the janitor starts another run, which
closes it as cancelled with the answers that are committed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from temporalio import activity

from activities.heartbeats import StopFlag, run_beside_heartbeats, run_in_thread
from activities.records.batch_webhooks import BatchWebhooks
from activities.records.catalog import Catalog
from activities.records.create_notes import CreateNotes
from activities.records.reminders import RUN_LOOK_SECONDS, Reminder
from activities.records.running import RunningBatches
from activities.records.uploads import UploadRecords
from activities.store.object_store import ObjectStore
from activities.temporal.batch_runs import BatchRuns
from workflows.contract import DELETE_EXPIRED, DELIVER_WITHIN, DeleteExpiredStub
from workflows.ids import BatchRef, result_file_id
from workflows.types import DeleteExpiredInput, DeleteExpiredResult

log = logging.getLogger("everbatch.janitor")

LATER_SECONDS: Final = 3600
"""Seconds until an object that could not be checked is checked again, and from the end of a batch until the janitor
deletes what attempts that were thought dead have left of it."""
LOOKS_AT_ONCE: Final = 16
"""Maximum number of batches whose runs are checked at once."""
OpenBatches = defaultdict[BatchRef, list[Reminder]]
"""Batches without a final record, each with its reminders."""


class DeleteExpired(DeleteExpiredStub):
    def __init__(self, store: ObjectStore, runs: BatchRuns, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._runs = runs
        self._catalog = Catalog(store, clock)
        self._creates = CreateNotes(store, clock)
        self._running = RunningBatches(self._catalog)
        self._webhooks = BatchWebhooks(store)
        self._uploads = UploadRecords(store, clock)
        self._clock = clock

    @activity.defn(name=DELETE_EXPIRED)
    async def delete_expired(self, task: DeleteExpiredInput) -> DeleteExpiredResult:
        open_batches: OpenBatches = defaultdict(list)
        done = await run_in_thread(lambda stop: self._delete(task, open_batches, stop))
        return await run_beside_heartbeats(self._look_at_runs(open_batches)) + done

    def _delete(self, task: DeleteExpiredInput, open_batches: OpenBatches, stop: StopFlag) -> DeleteExpiredResult:
        """Handle all reminders that are due, except those of batches without a final record.

        These are added to ``open_batches``.
        """
        now = int(self._clock())
        done = DeleteExpiredResult()
        for looked_at, reminder in enumerate(self._catalog.due(now)):
            stop.check()
            if looked_at == task.limit:
                return done.model_copy(update={"more": True})
            if result := self._look(reminder, now):
                done += result
                self._catalog.forget(reminder)
            else:
                open_batches[BatchRef(reminder.tenant, reminder.object_id)].append(reminder)
        self._creates.remove_old()
        self._store.delete_stale()
        return done

    def _look(self, reminder: Reminder, now: int) -> DeleteExpiredResult | None:
        kind, tenant, object_id, _ = reminder
        try:
            match kind:
                case "file":
                    return self._look_at_file(tenant, object_id)
                case "upload":
                    self._uploads.delete_upload_leftovers(tenant, object_id)
                    return DeleteExpiredResult(uploads=1)
                case "batch":
                    return self._look_at_batch(BatchRef(tenant, object_id), now)
        except Exception:
            # Postpone this reminder, so that many such reminders do not block the others. If the whole store is down,
            # this fails too, and with it the attempt.
            log.exception("the janitor could not look at %s %s", kind, object_id)
            self._catalog.remind(kind, tenant, object_id, now + LATER_SECONDS)
            return DeleteExpiredResult(failed=1)

    def _look_at_file(self, tenant: str, file_id: str) -> DeleteExpiredResult:
        if self._catalog.delete_expired_file(tenant, file_id):
            return DeleteExpiredResult(files=1)
        record = self._catalog.find_file(tenant, file_id)
        if record is None:  # its owner has deleted it
            return DeleteExpiredResult()
        if record.expires_at is not None:
            self._catalog.remind("file", tenant, file_id, record.expires_at)
        return DeleteExpiredResult(kept=1)

    def _look_at_batch(self, ref: BatchRef, now: int) -> DeleteExpiredResult | None:
        final = self._catalog.get_final(ref)
        if final is None:
            return None
        keep_until = final.keep_leftovers_until or (final.status.ended_at or 0) + LATER_SECONDS
        if now < keep_until:
            self._catalog.remind("batch", *ref, keep_until)
            return DeleteExpiredResult(kept=1)
        # Again: after the end, an attempt that was thought dead may have written parts or counted the batch as running.
        self._catalog.delete_leftovers(ref)
        self._running.remove(ref)
        ended_at, expires_after = final.status.ended_at or 0, final.spec.output_expires_after
        results_end = ended_at + max(expires_after, int(DELIVER_WITHIN.total_seconds()) + LATER_SECONDS)
        if now < results_end:
            self._catalog.remind("batch", *ref, results_end)
        else:
            self._catalog.delete_feed(ref)
            self._webhooks.delete(ref)
        done = DeleteExpiredResult(batches=1)
        for kind in ("output", "error"):
            done += self._look_at_file(ref.tenant, result_file_id(ref.batch_id, kind))
        return done

    # Batches without a final record

    async def _look_at_runs(self, batches: OpenBatches) -> DeleteExpiredResult:
        turns = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def look(ref: BatchRef, reminders: list[Reminder]) -> DeleteExpiredResult:
            async with turns:
                result = await self._look_at_run(ref)
                for reminder in reminders:
                    await asyncio.to_thread(self._catalog.forget, reminder)
                return result

        results = await asyncio.gather(*(look(ref, reminders) for ref, reminders in batches.items()))
        return sum(results, DeleteExpiredResult())

    async def _look_at_run(self, ref: BatchRef) -> DeleteExpiredResult:
        try:
            result = DeleteExpiredResult(kept=1)
            if not await self._runs.is_open(ref.batch_id):
                result = await self._close(ref)
        except Exception:
            log.exception("the janitor could not look at the run of batch %s", ref.batch_id)
            result = DeleteExpiredResult(failed=1)
        if result != DeleteExpiredResult():
            later = int(self._clock()) + RUN_LOOK_SECONDS
            await asyncio.to_thread(self._catalog.remind, "batch", *ref, later)
        return result

    async def _close(self, ref: BatchRef) -> DeleteExpiredResult:
        """Close a batch that has no open run."""
        record = await asyncio.to_thread(self._catalog.find_batch, ref)
        if record and record.status.phase.is_terminal:
            return DeleteExpiredResult(kept=1)  # the batch has ended since
        spec = record.spec if record else await self._runs.spec(ref.batch_id)
        if spec is None:  # the batch was never started
            await asyncio.to_thread(self._running.remove, ref)
            return DeleteExpiredResult()
        log.warning("the run of batch %s was terminated or lost; it is closed with the answers it has", spec.batch_id)
        await self._runs.start_cancelled(spec)
        return DeleteExpiredResult(closed=1)
