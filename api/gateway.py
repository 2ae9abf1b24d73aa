"""The one module of the API that talks to Temporal: starts, signals, queries and describes batch workflows."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, TypeGuard

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowHistoryEventFilterType,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.catalog import Catalog
from activities.payload_codec import SealedPayload
from activities.running_batches import RunningBatches
from activities.storage import ObjectNotFound, ObjectStore, StoreError
from api.progress import HighWater, Pending, live_counts, opened, progress_of, read_pending, tell_missing
from api.views import BatchHasEnded, BatchView, IdempotencyConflict, Progress, TemporalUnavailable
from workflows import contract
from workflows.batch import BatchWorkflow
from workflows.details import batch_summary, webhook_summary
from workflows.ids import webhook_workflow_id
from workflows.types import BatchError, BatchMemo, BatchPhase, BatchRecord, BatchSpec, BatchStatus, WebhookInput

log = logging.getLogger("everbatch.api")

STATUS_SECONDS: Final = 2.0
"""For all that one status asks of Temporal."""
CALL_LIMIT: Final = timedelta(seconds=5)
"""For a start or a signal, with the SDK's own retries."""
POLLER_SECONDS: Final = 70.0
"""A worker's poll lasts a minute, so one that has not begun another since is gone."""

_BATCH_ID: Final = re.compile(r"batch_[0-9a-f]{32}")
"""As the API makes them; others are not worth a call."""
_CALL_ERRORS: Final = (RPCError, RuntimeError)  # a lazy client that cannot connect raises the latter

Handle = WorkflowHandle[BatchWorkflow, BatchStatus]


class TemporalGateway:
    """See :class:`api.views.Gateway` for the contract."""

    def __init__(
        self, client: Client, store: ObjectStore, task_queue: str, address: str, upstreams: Sequence[str] = ()
    ) -> None:
        """Args: ``client`` may be lazy; ``address`` is for messages; ``upstreams`` are the names of all, if given."""
        self._client = client
        self._catalog = Catalog(store)
        self._task_queue = task_queue
        self._address = address
        self._upstreams = upstreams
        self._high_water = HighWater()

    async def create(self, spec: BatchSpec, *, idempotent: bool) -> BatchView:
        if idempotent and (record := await self._record(spec.tenant, spec.batch_id)):
            return await self._same(record, spec)  # Temporal may have forgotten it already
        try:
            await self._start(spec)
        except WorkflowAlreadyStartedError:
            return await self._same(await self._started_record(spec), spec)
        except _CALL_ERRORS as error:
            raise self._unavailable(error) from error
        return BatchView(await self._created(spec), Progress())

    async def find(self, tenant: str, batch_id: str) -> BatchView:
        return await self.view(await self._known(tenant, batch_id))

    async def view(self, record: BatchRecord) -> BatchView:
        """Climbs down a ladder: final record, workflow, what Temporal knows without a worker, last record."""
        if record.status.phase.is_terminal:
            self._high_water.forget(record.spec.batch_id)
            return BatchView(record, None)
        deadline = time.monotonic() + STATUS_SECONDS
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + STATUS_SECONDS):
                description = await self._handle(record.spec.batch_id).describe()
        except (TimeoutError, *_CALL_ERRORS) as error:
            if _is_unknown(error):
                return await self._ended(record, None)
            progress = Progress(waiting_reason=self._reason(error))
            return await self._shown(record.spec, record.status, [], progress)
        if description.status is not WorkflowExecutionStatus.RUNNING:
            return await self._ended(record, description)
        try:
            return await self._view_running(record, description, deadline)
        except (SealedPayload, KeyError) as error:  # the latter from the SDK, where this process has no keys at all
            log.warning("batch %s cannot be read: %s", record.spec.batch_id, error)
            progress = Progress(waiting_reason="the API has no payload key for it")
            return await self._shown(record.spec, record.status, [], progress)

    async def _view_running(
        self, record: BatchRecord, description: WorkflowExecutionDescription, deadline: float
    ) -> BatchView:
        # Asked after the description, the workflow knows of every shard that was no longer pending in it.
        activities = await opened(description.raw_description.pending_activities, self._client.data_converter)
        pending = read_pending(activities)
        if self._upstreams:
            pending = tell_missing(pending, record.spec.inference_task_queue, self._upstreams)
        status = await self._query(record.spec.batch_id, deadline - time.monotonic())
        if status and status.phase.is_terminal:
            return await self._ended(record, description)  # its record is written; the workflow is about to close
        if status:
            return await self._shown(record.spec, status, pending)
        status = await _status_without_worker(record, description)
        return await self._shown(record.spec, status, pending, Progress(waiting_reason="no worker answers"))

    async def cancel(self, tenant: str, batch_id: str) -> BatchView:
        record = await self._known(tenant, batch_id)
        if not record.status.phase.is_terminal and await self._signal(batch_id, contract.CANCEL_SIGNAL):
            await asyncio.to_thread(self._catalog.request_cancel, tenant, batch_id, int(time.time()))
        view = await self.find(tenant, batch_id)
        phase = view.record.status.phase
        if phase.is_terminal and phase is not BatchPhase.CANCELLED:
            raise BatchHasEnded(phase)
        return view

    async def set_paused(self, tenant: str, batch_id: str, paused: bool) -> BatchView:
        record = await self._known(tenant, batch_id)
        if not record.status.phase.is_terminal:
            await self._signal(batch_id, contract.PAUSE_SIGNAL if paused else contract.RESUME_SIGNAL)
        view = await self.find(tenant, batch_id)
        if view.record.status.phase.is_terminal:
            raise BatchHasEnded(view.record.status.phase)
        return view

    async def count_by_status(self) -> dict[str, int]:
        ours = f"WorkflowType = '{contract.BATCH_WORKFLOW}' AND TaskQueue = '{self._task_queue}'"
        queries = [f"{ours} AND {contract.STATUS_ATTRIBUTE.name} = '{phase.value}'" for phase in BatchPhase]
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                counts = await asyncio.gather(*map(self._client.count_workflows, queries))
        except (TimeoutError, *_CALL_ERRORS) as error:
            raise self._unavailable(error) from error
        return {phase.value: answer.count for phase, answer in zip(BatchPhase, counts, strict=True)}

    async def missing(self) -> list[str]:
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=self._task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                answer = await self._client.workflow_service.describe_task_queue(request)
        except (TimeoutError, *_CALL_ERRORS) as error:
            return [self._reason(error)]
        oldest = time.time() - POLLER_SECONDS
        if any(poller.last_access_time.ToNanoseconds() / 1e9 > oldest for poller in answer.pollers):
            return []
        return [f"no worker is polling the task queue {self._task_queue}"]

    # Starting

    async def _start(self, spec: BatchSpec) -> None:
        await self._client.start_workflow(
            BatchWorkflow.run,
            spec,
            id=spec.batch_id,
            task_queue=self._task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            static_summary=batch_summary(spec, await asyncio.to_thread(self._input_lines, spec)),
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(contract.TENANT_ATTRIBUTE, spec.tenant),
                    SearchAttributePair(contract.ENDPOINT_ATTRIBUTE, spec.endpoint),
                    SearchAttributePair(contract.STATUS_ATTRIBUTE, BatchPhase.VALIDATING.value),
                ]
            ),
            rpc_timeout=CALL_LIMIT,
        )
        log.info("batch %s is started", spec.batch_id)

    def _input_lines(self, spec: BatchSpec) -> int | None:
        record = self._catalog.find_file(spec.tenant, spec.input_file_id)
        return record.lines if record else None  # validation will say that there is none

    async def _same(self, record: BatchRecord, spec: BatchSpec) -> BatchView:
        """The batch that an idempotency key stands for already."""
        if record.spec.digest != spec.digest:
            raise IdempotencyConflict
        return await self.view(record)

    async def _started_record(self, spec: BatchSpec) -> BatchRecord:
        """The record of a batch that is started; made from its history where nobody has written it yet."""
        try:
            return await self._known(spec.tenant, spec.batch_id)
        except ObjectNotFound:
            raise TemporalUnavailable("a batch that was started has no history") from None

    async def _created(self, spec: BatchSpec) -> BatchRecord:
        """The first record of a batch whose workflow is started."""
        try:
            await asyncio.to_thread(self._catalog.create_batch, spec)
        except StoreError as error:
            # Its worker writes it as well. An error here would have the client create another batch.
            log.warning("the record of batch %s is left to its worker: %s", spec.batch_id, error)
        return BatchRecord(spec=spec, status=BatchStatus())

    async def _known(self, tenant: str, batch_id: str) -> BatchRecord:
        """The newest record of a batch; of one that is started and has none yet, from its history.

        Raises:
            ObjectNotFound: neither the store nor Temporal knows it, or it is another tenant's.
            TemporalUnavailable: the store does not know it, and Temporal cannot be asked.
        """
        if record := await self._record(tenant, batch_id):
            return record
        spec = await self._started_spec(batch_id) if _BATCH_ID.fullmatch(batch_id) else None
        if spec is None or spec.tenant != tenant:
            raise ObjectNotFound(batch_id[:80])
        return await self._created(spec)

    async def _started_spec(self, batch_id: str) -> BatchSpec | None:
        """What the workflow of this id was started with, if it is a batch's."""
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                async for event in self._handle(batch_id).fetch_history_events(page_size=1):
                    started = event.workflow_execution_started_event_attributes
                    if started.workflow_type.name != contract.BATCH_WORKFLOW:
                        return None
                    (spec,) = await self._client.data_converter.decode(started.input.payloads, [BatchSpec])
                    return spec
        except (TimeoutError, *_CALL_ERRORS) as error:
            if not _is_unknown(error):
                raise self._unavailable(error) from error
        except (SealedPayload, KeyError) as error:  # as in view; whose batch it is cannot be told
            raise TemporalUnavailable(f"the API has no payload key for batch {batch_id}") from error
        return None

    async def _record(self, tenant: str, batch_id: str) -> BatchRecord | None:
        return await asyncio.to_thread(self._catalog.find_batch, tenant, batch_id)

    # Looking

    async def _query(self, batch_id: str, seconds: float) -> BatchStatus | None:
        """The workflow's own status; ``None`` while no worker is there to say."""
        try:
            # Temporal holds one query of a workflow at a time and refuses the next; the SDK then tries again for far
            # longer than the limit of the single call.
            async with asyncio.timeout(max(0.1, seconds)):
                return await self._handle(batch_id).query(
                    BatchWorkflow.status, rpc_timeout=timedelta(seconds=max(0.1, seconds))
                )
        except (TimeoutError, WorkflowQueryFailedError, WorkflowQueryRejectedError, *_CALL_ERRORS):
            return None

    async def _shown(
        self, spec: BatchSpec, status: BatchStatus, pending: list[Pending], without_worker: Progress | None = None
    ) -> BatchView:
        counts = self._high_water.raise_to(spec.batch_id, live_counts(status, pending))
        if without_worker:
            if status.cancelling_at is None:
                cancelling_at = await asyncio.to_thread(self._catalog.cancel_requested_at, spec.tenant, spec.batch_id)
                status = status.model_copy(update={"cancelling_at": cancelling_at})
            progress = without_worker
        else:
            progress = progress_of(status, counts, pending, time.time())
        return BatchView(BatchRecord(spec=spec, status=status.model_copy(update={"counts": counts})), progress)

    async def _ended(self, record: BatchRecord, description: WorkflowExecutionDescription | None) -> BatchView:
        """The workflow runs no more: its final record, or why there is none."""
        spec = record.spec
        final = await asyncio.to_thread(self._catalog.get_final, spec.tenant, spec.batch_id)
        if final:
            return await self.view(final)
        if description is None:
            error = BatchError(code="batch_lost", message="Temporal does not know the workflow of this batch.")
            return BatchView(_as_failed(record, record.status, error, int(time.time())), None)
        reason = await self._reason_of_end(description)
        error = BatchError(code="batch_terminated", message=f"The workflow of this batch was ended: {reason}")
        status = await _status_without_worker(record, description)
        closed_at = int(description.close_time.timestamp()) if description.close_time else int(time.time())
        failed = _as_failed(record, status, error, closed_at)
        if spec.webhooks and not await self._start_webhooks(failed):
            return BatchView(failed, None)  # whoever asks next tries again, as long as no record says that it has ended
        await asyncio.to_thread(self._catalog.save_final, failed)
        if spec.counted:
            await asyncio.to_thread(RunningBatches(self._catalog).remove, spec.tenant, spec.batch_id)
        return await self.view(failed)

    async def _start_webhooks(self, ended: BatchRecord) -> bool:
        """Tell of a batch whose own workflow can no longer do it; whether that is sure to happen."""
        task = WebhookInput.of(ended.spec, ended.status)
        try:
            await self._client.start_workflow(
                contract.WEBHOOK_WORKFLOW,
                task,
                id=webhook_workflow_id(ended.spec.batch_id),
                task_queue=self._task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                static_summary=webhook_summary(task),
                rpc_timeout=CALL_LIMIT,
            )
        except WorkflowAlreadyStartedError:
            return True
        except _CALL_ERRORS as error:
            log.warning("the webhooks of batch %s are not started: %s", ended.spec.batch_id, error)
            return False
        return True

    async def _reason_of_end(self, description: WorkflowExecutionDescription) -> str:
        name = description.status.name.lower() if description.status else "unknown"
        try:
            events = self._handle(description.id).fetch_history_events(
                event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT
            )
            async for event in events:
                if event.HasField("workflow_execution_terminated_event_attributes"):
                    return event.workflow_execution_terminated_event_attributes.reason or name
        except _CALL_ERRORS:
            log.warning("the end of batch %s cannot be read", description.id)
        return name

    async def _signal(self, batch_id: str, signal: str) -> bool:
        """Whether the workflow was there to be told."""
        try:
            await self._handle(batch_id).signal(signal, rpc_timeout=CALL_LIMIT)
        except _CALL_ERRORS as error:
            if not _is_unknown(error):
                raise self._unavailable(error) from error
            return False
        return True

    def _handle(self, batch_id: str) -> Handle:
        return self._client.get_workflow_handle_for(BatchWorkflow.run, batch_id)

    def _unavailable(self, error: Exception) -> TemporalUnavailable:
        log.warning("Temporal at %s: %s", self._address, error)
        return TemporalUnavailable(self._reason(error))

    def _reason(self, error: Exception) -> str:
        """Why Temporal is of no use just now."""
        if _is_not_found(error) and not _is_unknown(error):
            return f"Temporal at {self._address} has no namespace {self._client.namespace}"
        return f"Temporal at {self._address} does not answer"


def _is_not_found(error: Exception) -> TypeGuard[RPCError]:
    return isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND


def _is_unknown(error: Exception) -> bool:
    """Whether Temporal does not know the workflow; where it lacks our namespace it says "not found" of that as well."""
    return _is_not_found(error) and not any(
        detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details
    )


def _as_failed(record: BatchRecord, status: BatchStatus, error: BatchError, failed_at: int) -> BatchRecord:
    update = {"phase": BatchPhase.FAILED, "errors": [error], "errors_total": 1, "failed_at": failed_at}
    return BatchRecord(spec=record.spec, status=status.model_copy(update=update))


async def _status_without_worker(record: BatchRecord, description: WorkflowExecutionDescription) -> BatchStatus:
    """What the run last wrote where it can be read without a worker, over what the store says."""
    memo = await description.memo_value(contract.MEMO_STATUS, None, type_hint=BatchMemo)
    if memo is None:
        return record.status
    return record.status.model_copy(update={name: getattr(memo, name) for name in BatchMemo.model_fields})
