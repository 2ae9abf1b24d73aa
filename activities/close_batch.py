"""The activity that closes a batch with the outcome that its workflow has decided.

It writes the final record, updates the counts, starts the webhooks and deletes leftovers.
"""

from __future__ import annotations

import logging
import time

from temporalio import activity

from activities.error_messages import messages_of_file
from activities.heartbeats import run_in_thread
from activities.records.catalog import Catalog
from activities.records.running import RunningBatches
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from activities.temporal.batch_runs import BatchRuns
from workflows.contract import CLOSE_BATCH, CloseBatchStub
from workflows.end_types import CloseBatchInput
from workflows.types import BatchPhase, BatchRecord, BatchStatus

log = logging.getLogger("everbatch")


class CloseBatch(CloseBatchStub):
    def __init__(self, store: ObjectStore, runs: BatchRuns) -> None:
        self._catalog = Catalog(store)
        self._running = RunningBatches(self._catalog)
        self._runs = runs

    @activity.defn(name=CLOSE_BATCH)
    async def close_batch(self, task: CloseBatchInput) -> BatchStatus:
        final = await run_in_thread(lambda _: self._record(task))
        spec = final.spec
        if spec.webhooks:
            await self._runs.start_webhooks(final)
        if final.status.phase is BatchPhase.CANCELLED and not task.run_is_cancelled:
            await self._runs.cancel(spec.batch_id, activity.info().workflow_run_id)
        if not final.keep_leftovers_until:
            # Last: the final record tells an attempt after a crash that the leftovers are no longer needed.
            await run_in_thread(lambda _: self._catalog.delete_leftovers(spec.ref))
        return final.status

    def _record(self, task: CloseBatchInput) -> BatchRecord:
        """Write the final record, unless an earlier attempt has written it, and return it."""
        spec = task.spec
        final = self._catalog.get_final(spec.ref)
        if final is None:
            status = task.status.model_copy(update={"phase": task.status.outcome, "outcome": None})
            keep_until = int(time.time()) + spec.output_expires_after if task.keep_answers else None
            final = BatchRecord(
                spec=spec, status=status, error_messages=self._messages(task), keep_leftovers_until=keep_until
            )
            self._catalog.save_final(final)
            _log_end(final)
        if spec.counts_towards_limits:
            self._running.remove(spec.ref)
        return final

    def _messages(self, task: CloseBatchInput) -> dict[str, str]:
        status = task.status
        try:
            return messages_of_file(self._catalog.store, task.spec.tenant, status.error_file_id, status.error_summary)
        except ObjectNotFoundError:  # the file has already been deleted
            return {}


def _log_end(final: BatchRecord) -> None:
    spec, status, counts = final.spec, final.status, final.status.counts
    why = f" ({status.errors[0].code})" if status.errors else ""
    log.info(
        "batch %s is %s%s after %d s: %d requests, %d completed, %d failed",
        spec.batch_id,
        status.phase,
        why,
        (status.ended_at or spec.created_at) - spec.created_at,
        counts.total,
        counts.completed,
        counts.failed,
    )
