"""The gateway to batches: starts, signals, queries and describes their workflows in Temporal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHistoryEventFilterType,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.records.catalog import Catalog
from activities.records.reminders import RUN_LOOK_SECONDS
from activities.store.object_store import ObjectNotFoundError, ObjectStore, StoreError
from activities.temporal.batch_runs import CALL_LIMIT, BatchRuns, is_unknown
from activities.temporal.payload_codec import EncryptedPayloadError
from activities.upstreams.config import Upstream
from api.gateway.batch_looks import BatchLooks
from api.gateway.interface import (
    BatchHasEndedError,
    BatchIsRunningError,
    BatchView,
    IdempotencyConflictError,
    Progress,
    TemporalUnavailableError,
)
from api.gateway.pace import Paces
from api.gateway.pending import Pending, mark_missing_upstreams, opened, read_pending, shared_upstreams
from api.gateway.progress import live_status, progress_of, unfinished
from api.gateway.readiness import CannotWriteError, Readiness
from api.gateway.shared_looks import Seen
from api.gateway.standstill import Standstill
from api.gateway.temporal_waits import CANNOT_WRITE, SEALED, STATUS_SECONDS, ended_wait, temporal_wait, unanswered_wait
from api.gateway.waits import ReportedWait, waits_of, with_waits
from api.gateway.worker_silence import LATE_SECONDS, WorkerSilence
from api.gateway.workflow_reader import CALL_ERRORS, UNANSWERED, WorkflowReader, batches_of
from workflows import contract
from workflows.events import ByTenant
from workflows.ids import BatchRef, is_batch_id
from workflows.types import BatchPhase, BatchRecord, BatchSpec, BatchStatus
from workflows.waits import Wait

log = logging.getLogger("everbatch.api")

CANCEL_SECONDS: Final = 12.0
"""Maximum time to wait until it is certain whether a cancel came in time. If a worker is killed during a workflow task,
the task times out after ten seconds and is then given to another worker."""
CANCEL_LOOK_SECONDS: Final = 0.05

ViewRunning = Callable[[BatchRecord, WorkflowExecutionDescription, float], Coroutine[Any, Any, BatchView]]


class TemporalGateway:
    """See :class:`api.gateway.interface.Gateway` for the contract."""

    def __init__(
        self, client: Client, store: ObjectStore, task_queue: str, address: str, upstreams: Sequence[Upstream] = ()
    ) -> None:
        """Args: ``client`` may be lazy; ``address`` is for messages; ``upstreams`` are all upstreams, or empty."""
        self._client = client
        self._catalog = Catalog(store)
        self._task_queue = task_queue
        self._address = address
        self._upstreams = upstreams
        self._looks = BatchLooks()
        self._paces = Paces()
        self._reader = WorkflowReader(client)
        self._runs = BatchRuns(client, task_queue)
        self._readiness = Readiness(client, task_queue)
        self._standstill = Standstill(client, task_queue, self._readiness, address)
        self._workers = WorkerSilence(self._readiness, task_queue)

    async def create(self, spec: BatchSpec, *, idempotent: bool) -> BatchView:
        if idempotent and (record := await asyncio.to_thread(self._catalog.find_batch, spec.ref)):
            return await self._same(record, spec)  # Temporal may have forgotten it already
        try:
            await self._start(spec)
        except WorkflowAlreadyStartedError:
            return await self._same(await self._started_record(spec), spec)
        except CALL_ERRORS as error:
            raise self._unavailable(error) from error
        return BatchView(await self._created(spec), Progress())

    async def find(self, ref: BatchRef) -> BatchView:
        return await self._looks.share(ref, lambda: self._find(ref))

    async def _find(self, ref: BatchRef) -> BatchView:
        try:
            return await self.view(await self._known(ref))
        except ObjectNotFoundError:
            raise
        except StoreError as error:
            return await self._view_without_store(ref, error)

    async def _view_without_store(self, ref: BatchRef, error: StoreError) -> BatchView:
        """Return a batch from Temporal alone, because its record cannot be read.

        Raises:
            StoreError: Temporal does not know the batch, or the batch has ended.
        """
        spec = await self._started_spec(ref)
        if spec is None:
            raise error
        view = await self.view(BatchRecord(spec=spec, status=BatchStatus()))
        if view.progress is None or view.progress.waiting:
            return view
        return self._with_waits(view.record, view.progress, [ReportedWait(error.wait)])

    async def view(self, record: BatchRecord) -> BatchView:
        """Use the first available of: final record, workflow, Temporal's description of it, last known record."""
        return await self._look(record, self._view_running)

    async def glances(self, records: Sequence[BatchRecord]) -> list[BatchView]:
        return await self._looks.glances(records, lambda record: self._look(record, self._view_listed))

    async def _look(self, record: BatchRecord, view_running: ViewRunning) -> BatchView:
        if record.status.phase.is_terminal:
            self._looks.shown.forget(record.spec.batch_id)
            return BatchView(record, None)
        began = time.time()
        try:
            description = await self._reader.describe(record.spec.batch_id, STATUS_SECONDS)
        except UNANSWERED as error:
            if is_unknown(error):
                return await self._ended(record, None)
            return await self._view_unread(record, self._temporal_wait(error))
        if description.status is not WorkflowExecutionStatus.RUNNING:
            return await self._ended(record, description)
        try:
            return await view_running(record, description, began)
        except (EncryptedPayloadError, KeyError) as error:  # KeyError: from the SDK, if this process has no keys at all
            log.warning("batch %s cannot be read: %s", record.spec.batch_id, error)
            return await self._view_unread(record, SEALED)

    async def _view_running(
        self, record: BatchRecord, description: WorkflowExecutionDescription, began: float
    ) -> BatchView:
        # Query after the description: the workflow then knows every shard that was no longer pending there.
        left = began + STATUS_SECONDS - time.time()
        status = await self._reader.query(record.spec.batch_id, left - LATE_SECONDS)
        if status and status.phase.is_terminal:
            return await self._ended(record, description)  # the final record is written, the workflow closes soon
        if status:
            pending = await self._pending(record, description)
            return await self._shown(record.spec, status, pending, began, is_from_workflow=True)
        return await self._view_listed(record, description, began, is_queried=True)

    def _gone(self, view: BatchView, wait: Wait) -> BatchView:
        """Return the view without its progress, because no worker is left to run the activities."""
        as_of = view.progress.as_of if view.progress else None
        return self._with_waits(view.record, Progress(as_of=as_of), [ReportedWait(wait)])

    async def _view_described(
        self, record: BatchRecord, description: WorkflowExecutionDescription, began: float
    ) -> BatchView:
        """View a batch without querying its workflow. Finished shards are missing until the next write of its memo."""
        last = self._looks.newest(record)
        status, as_of = await self._reader.status(last.value.record if last else record, description)
        if as_of is not None:
            began = min(began, max(as_of, _as_of(last) or 0))
        if history := self._looks.shown.history(record.spec.batch_id):  # the current wait may have ended
            status = status.model_copy(update={"history": history})
        pending = await self._pending(record, description)
        return await self._shown(record.spec, status, pending, began, is_from_workflow=False)

    async def _view_listed(
        self, record: BatchRecord, description: WorkflowExecutionDescription, began: float, is_queried: bool = False
    ) -> BatchView:
        """View a batch without querying its workflow; ``is_queried`` is whether it was queried and did not answer."""
        view = await self._view_described(record, description, began)
        wait = await self._workers.wait(is_queried=is_queried)
        return self._gone(view, wait) if wait else view

    async def _view_unread(self, record: BatchRecord, wait: Wait) -> BatchView:
        """Return a batch that cannot be read now as it was last seen or, failing that, as recorded."""
        last = self._looks.newest(record)
        return self._still(record.spec, last.value.record.status if last else record.status, wait, _as_of(last))

    def _still(self, spec: BatchSpec, status: BatchStatus, wait: Wait, as_of: int | None) -> BatchView:
        """Return the view of a batch with no known activity."""
        record = self._looks.shown.record(spec, status)
        return self._with_waits(record, Progress(as_of=as_of), [ReportedWait(wait)])

    def _with_waits(self, record: BatchRecord, progress: Progress, waits: Sequence[ReportedWait]) -> BatchView:
        return BatchView(record, with_waits(progress, waits, record.spec, record.status, time.time()))

    async def _pending(self, record: BatchRecord, description: WorkflowExecutionDescription) -> list[Pending]:
        activities = await opened(description.raw_description.pending_activities, self._client.data_converter)
        pending = read_pending(activities)
        if self._upstreams:
            names = [upstream.name for upstream in self._upstreams]
            pending = mark_missing_upstreams(pending, record.spec.inference_task_queue, names)
        return pending

    async def _shown(
        self, spec: BatchSpec, status: BatchStatus, pending: list[Pending], began: float, is_from_workflow: bool
    ) -> BatchView:
        running = unfinished(status, pending)
        live = live_status(status, running)
        record = self._looks.shown.record(spec, live, began, is_from_workflow, status.history)
        status, now = record.status, time.time()
        pace = self._paces.of(spec.batch_id, status, running, now)
        shared = shared_upstreams(pending, spec.inference_task_queue, self._upstreams)
        update = {"as_of": int(began), "shared_upstreams": shared}
        progress = progress_of(status, pending, pace).model_copy(update=update)
        waits = waits_of(spec, status, pending, now)
        if not waits and (wait := await self._standstill.wait(spec.batch_id, status, pending, progress)):
            waits = [ReportedWait(wait)]
        return self._with_waits(record, progress, waits)

    async def cancel(self, ref: BatchRef) -> BatchView:
        record = await self._known(ref)
        was_running = False
        if not record.status.phase.is_terminal:
            try:
                was_running = await self._runs.cancel(ref.batch_id, by=ByTenant(tenant=ref.tenant))
            except CALL_ERRORS as error:
                raise self._unavailable(error) from error
        return await self._after_cancel(record, CANCEL_SECONDS if was_running else 0)

    async def _after_cancel(self, record: BatchRecord, seconds: float) -> BatchView:
        """Return the batch once it is certain whether the cancel came before its outcome was decided."""
        deadline = time.monotonic() + seconds
        while True:
            self._looks.forget(record)
            view = await self.find(record.spec.ref)
            status = view.record.status
            outcome = status.phase if status.phase.is_terminal else status.outcome
            if outcome is BatchPhase.CANCELLED or (outcome is None and status.cancelling_at is not None):
                return view
            is_late = time.monotonic() >= deadline
            if status.phase.is_terminal or (outcome and is_late):
                raise BatchHasEndedError(outcome or status.phase)
            if is_late:
                raise TemporalUnavailableError("it is not known yet whether the batch is cancelled")
            await asyncio.sleep(CANCEL_LOOK_SECONDS)

    async def set_paused(self, ref: BatchRef, paused: bool) -> BatchView:
        record = await self._known(ref)
        if not record.status.phase.is_terminal:
            await self._signal(ref, contract.PAUSE_SIGNAL if paused else contract.RESUME_SIGNAL)
        self._looks.forget(record)
        view = await self.find(ref)
        if view.record.status.phase.is_terminal:
            raise BatchHasEndedError(view.record.status.phase)
        return view

    async def delete(self, ref: BatchRef) -> None:
        record = (await self.find(ref)).record
        if not record.status.phase.is_terminal:
            raise BatchIsRunningError
        await asyncio.to_thread(self._catalog.delete_batch, record)
        self._looks.forget(record)

    async def count_by_status(self) -> dict[str, int]:
        ours = batches_of(self._task_queue)
        queries = [f"{ours} AND {contract.STATUS_ATTRIBUTE.name} = '{phase.value}'" for phase in BatchPhase]
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                counts = await asyncio.gather(*map(self._client.count_workflows, queries))
        except UNANSWERED as error:
            raise self._unavailable(error) from error
        return {phase.value: answer.count for phase, answer in zip(BatchPhase, counts, strict=True)}

    async def missing(self) -> list[str]:
        try:
            if await self._readiness.has_worker():
                return []
        except CannotWriteError:
            return [temporal_wait(self._address, CANNOT_WRITE).text]
        except UNANSWERED as error:
            return [self._temporal_wait(error).text]
        return [f"no worker is polling the task queue {self._task_queue}"]

    # Starting

    async def _start(self, spec: BatchSpec) -> None:
        lines = await asyncio.to_thread(self._prepare, spec)
        await self._runs.start(spec, lines)
        log.info("batch %s is started", spec.batch_id)

    def _prepare(self, spec: BatchSpec) -> int | None:
        """Remind the janitor of the batch before it starts. Returns the number of lines of its input, if known."""
        self._catalog.remind("batch", *spec.ref, spec.created_at + RUN_LOOK_SECONDS)
        record = self._catalog.find_file(spec.tenant, spec.input_file_id)
        return record.lines if record else None  # validation reports a missing file

    async def _same(self, record: BatchRecord, spec: BatchSpec) -> BatchView:
        """Return the existing batch of an idempotency key, if it has the same parameters."""
        if record.deleted_at is not None or not record.spec.is_same_create_as(spec):
            raise IdempotencyConflictError
        return await self.view(record)

    async def _started_record(self, spec: BatchSpec) -> BatchRecord:
        """Return the record of a started batch. It is created from the history if it is not written yet."""
        try:
            return await self._known(spec.ref)
        except ObjectNotFoundError:
            raise TemporalUnavailableError("a batch that was started has no history") from None

    async def _created(self, spec: BatchSpec) -> BatchRecord:
        """Write and return the first record of a batch whose workflow is started."""
        try:
            await asyncio.to_thread(self._catalog.create_batch, spec)
        except StoreError as error:
            # The worker writes it as well. An error here would make the client create a second batch.
            log.warning("the record of batch %s is left to its worker: %s", spec.batch_id, error)
        return BatchRecord(spec=spec, status=BatchStatus())

    async def _known(self, ref: BatchRef) -> BatchRecord:
        """Return the newest record of a batch. If a started batch has none yet, it is created from the history.

        Raises:
            ObjectNotFoundError: neither the store nor Temporal knows the batch, or it is another tenant's.
            TemporalUnavailableError: the store does not know the batch, and Temporal does not answer.
        """
        if record := await asyncio.to_thread(self._catalog.find_batch, ref):
            if record.deleted_at is not None:
                raise ObjectNotFoundError(ref.batch_id[:80])
            return record
        spec = await self._started_spec(ref)
        if spec is None:
            raise ObjectNotFoundError(ref.batch_id[:80])
        return await self._created(spec)

    async def _started_spec(self, ref: BatchRef) -> BatchSpec | None:
        """Return the input of the batch's workflow, or ``None`` if there is none of this tenant."""
        if not is_batch_id(ref.batch_id):
            return None
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                spec = await self._runs.spec(ref.batch_id)
        except UNANSWERED as error:
            raise self._unavailable(error) from error
        except (EncryptedPayloadError, KeyError) as error:  # as in _look; the tenant is unknown
            raise TemporalUnavailableError(f"the API has no payload key for batch {ref.batch_id}") from error
        return spec if spec and spec.ref == ref else None

    # The end

    async def _ended(self, record: BatchRecord, description: WorkflowExecutionDescription | None) -> BatchView:
        """Return the view of a batch without a running workflow: its final record, or a wait for the janitor."""
        spec = record.spec
        final = await asyncio.to_thread(self._catalog.get_final, spec.ref)
        if final:
            return await self.view(final)
        if description is None:
            return await self._view_unread(record, temporal_wait(self._address, "does not know this batch's workflow"))
        status, _ = await self._reader.status(record, description)
        closed_at = int(description.close_time.timestamp()) if description.close_time else int(time.time())
        update = {"phase": BatchPhase.CANCELLING, "cancelling_at": status.cancelling_at or closed_at}
        wait = ended_wait(await self._reason_of_end(description))
        return self._still(spec, status.model_copy(update=update), wait, int(time.time()))

    async def _reason_of_end(self, description: WorkflowExecutionDescription) -> str:
        name = description.status.name.lower() if description.status else "unknown"
        try:
            events = self._reader.handle(description.id).fetch_history_events(
                event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT
            )
            async for event in events:
                if event.HasField("workflow_execution_terminated_event_attributes"):
                    return event.workflow_execution_terminated_event_attributes.reason or name
        except CALL_ERRORS:
            log.warning("the end of batch %s cannot be read", description.id)
        return name

    async def _signal(self, ref: BatchRef, signal: str) -> None:
        """Signal the workflow of a batch, unless it has closed."""
        try:
            by = ByTenant(tenant=ref.tenant)
            await self._reader.handle(ref.batch_id).signal(signal, by, rpc_timeout=CALL_LIMIT)
        except CALL_ERRORS as error:
            if not is_unknown(error):
                raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> TemporalUnavailableError:
        log.warning("Temporal at %s: %s", self._address, error)
        return TemporalUnavailableError(self._temporal_wait(error).text)

    def _temporal_wait(self, error: Exception) -> Wait:
        return unanswered_wait(error, self._address, self._client.namespace, self._reader.silent_seconds)


def _as_of(seen: Seen[BatchView] | None) -> int | None:
    return seen.value.progress.as_of if seen and seen.value.progress else None
