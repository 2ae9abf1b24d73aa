"""The activity of the janitor: looks at the objects it was reminded of and deletes what nobody can ask for any more.

Whoever makes an object writes a reminder first (:meth:`activities.catalog.Catalog.remind`), so what a crash leaves
behind is found without listing the store. A reminder goes last: an attempt that is cut off is repeated from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from temporalio import activity

from activities.catalog import Catalog
from activities.in_thread import StopFlag, run_in_thread
from activities.reminders import Reminder
from activities.running_batches import RunningBatches
from activities.storage import ObjectStore
from activities.upload_records import UploadRecords
from workflows.contract import DELETE_EXPIRED, DeleteExpiredStub
from workflows.ids import result_file_id
from workflows.types import DeleteExpiredInput, DeleteExpiredResult

log = logging.getLogger("everbatch.janitor")

LATER_SECONDS: Final = 3600
"""Until the next look at a batch that has not ended, and at what could not be looked at."""


class DeleteExpired(DeleteExpiredStub):
    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._running = RunningBatches(self._catalog)
        self._uploads = UploadRecords(store, clock)
        self._clock = clock

    @activity.defn(name=DELETE_EXPIRED)
    async def delete_expired(self, task: DeleteExpiredInput) -> DeleteExpiredResult:
        return await run_in_thread(lambda stop: self._delete(task, stop))

    def _delete(self, task: DeleteExpiredInput, stop: StopFlag) -> DeleteExpiredResult:
        now = int(self._clock())
        done = DeleteExpiredResult()
        for looked_at, reminder in enumerate(self._catalog.due(now)):
            stop.check()
            if looked_at == task.limit:
                return done.model_copy(update={"more": True})
            done += self._look(reminder, now)
            self._catalog.forget(reminder)
        self._store.delete_stale()
        return done

    def _look(self, reminder: Reminder, now: int) -> DeleteExpiredResult:
        kind, tenant, object_id, _ = reminder
        try:
            match kind:
                case "file":
                    return self._look_at_file(tenant, object_id, now)
                case "upload":
                    self._uploads.delete_upload_leftovers(tenant, object_id)
                    return DeleteExpiredResult(uploads=1)
                case "batch":
                    return self._look_at_batch(tenant, object_id, now)
        except Exception:
            # It waits behind the others, so that many such do not keep the janitor from them. Where the whole store is
            # away this fails as well, and the attempt with it.
            log.exception("the janitor could not look at %s %s", kind, object_id)
            self._catalog.remind(kind, tenant, object_id, now + LATER_SECONDS)
            return DeleteExpiredResult(failed=1)

    def _look_at_file(self, tenant: str, file_id: str, now: int) -> DeleteExpiredResult:
        if self._catalog.delete_expired_file(tenant, file_id, now):
            return DeleteExpiredResult(files=1)
        record = self._catalog.find_file(tenant, file_id)
        if record is None:  # its owner has deleted it
            return DeleteExpiredResult()
        if record.expires_at is not None:
            self._catalog.remind("file", tenant, file_id, record.expires_at)
        return DeleteExpiredResult(kept=1)

    def _look_at_batch(self, tenant: str, batch_id: str, now: int) -> DeleteExpiredResult:
        if not self._catalog.get_final(tenant, batch_id):
            self._catalog.remind("batch", tenant, batch_id, now + LATER_SECONDS)
            return DeleteExpiredResult(kept=1)
        # Again: an attempt that was thought dead may have written parts behind the end, or counted it as running.
        self._catalog.delete_leftovers(tenant, batch_id)
        self._running.remove(tenant, batch_id)
        done = DeleteExpiredResult(batches=1)
        for kind in ("output", "error"):
            done += self._look_at_file(tenant, result_file_id(batch_id, kind), now)
        return done
