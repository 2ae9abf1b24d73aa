"""Reads the state of a batch's workflow from Temporal, with a time limit on each call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import timedelta
from typing import Final

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, PendingWorkflowTaskState
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.service import RPCError

from workflows import contract
from workflows.batch import BatchWorkflow
from workflows.types import BatchMemo, BatchPhase, BatchRecord, BatchStatus

CALL_ERRORS: Final = (RPCError, RuntimeError)  # a lazy client that cannot connect raises the latter
UNANSWERED: Final = (TimeoutError, *CALL_ERRORS)
"""Errors of a call with a time limit: Temporal refuses it, or does not answer in time."""
MIN_SECONDS: Final = 0.1
"""Minimum time limit in seconds of a query, however little time is left for the request."""
LAST_EVENTS: Final = 100
"""Number of a history's newest events that are searched for a cancel request."""
HISTORY_LIMIT: Final = timedelta(seconds=1)

Handle = WorkflowHandle[BatchWorkflow, BatchStatus]


def batches_of(task_queue: str) -> str:
    """Return the visibility query that finds the workflows of all batches."""
    return f"WorkflowType = '{contract.BATCH_WORKFLOW}' AND TaskQueue = '{task_queue}'"


class WorkflowReader:
    """Describes and queries workflows, and changes none."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answered_at = float("-inf")

    def handle(self, batch_id: str) -> Handle:
        return self._client.get_workflow_handle_for(BatchWorkflow.run, batch_id)

    async def describe(self, batch_id: str, seconds: float) -> WorkflowExecutionDescription:
        """Return Temporal's description of a workflow.

        Raises:
            TimeoutError: Temporal does not answer within ``seconds``.
            RPCError, RuntimeError: Temporal refuses the call or cannot be reached, or the workflow is unknown.
        """
        async with asyncio.timeout(seconds):
            description = await self.handle(batch_id).describe()
        self._answered_at = time.monotonic()
        return description

    @property
    def silent_seconds(self) -> float:
        """Seconds since Temporal last described any workflow; infinite before the first time."""
        return time.monotonic() - self._answered_at

    async def query(self, batch_id: str, seconds: float) -> BatchStatus | None:
        """Return the status that the workflow itself reports, or ``None`` if no worker answers within ``seconds``."""
        seconds = max(MIN_SECONDS, seconds)
        try:
            # Temporal holds one query per workflow at a time and refuses the next; the SDK then retries for far longer
            # than ``rpc_timeout``, which limits a single call.
            async with asyncio.timeout(seconds):
                return await self.handle(batch_id).query(BatchWorkflow.status, rpc_timeout=timedelta(seconds=seconds))
        except (TimeoutError, WorkflowQueryFailedError, WorkflowQueryRejectedError, *CALL_ERRORS):
            return None

    async def status(
        self, record: BatchRecord, description: WorkflowExecutionDescription
    ) -> tuple[BatchStatus, int | None]:
        """Return what is known of a run without querying its workflow.

        A cancel is included once it is certain that the workflow will see it before it decides on its outcome.

        Returns: ``record``'s status, updated with what the workflow last wrote to its memo and search attribute; and
            the Unix time at which it wrote the memo, if there is one.
        """
        status = record.status
        memo = await description.memo_value(contract.MEMO_STATUS, None, type_hint=BatchMemo)
        if memo is not None:
            status = memo.over(status)
        written_at = memo.written_at if memo else None
        shown = BatchPhase(description.typed_search_attributes.get(contract.STATUS_ATTRIBUTE, status.phase.value))
        if shown.is_terminal:
            return status.model_copy(update={"outcome": shown}), written_at
        if status.cancelling_at is None and _will_be_cancelled(description):
            cancelling_at = await self._cancel_requested_at(description)
            return status.model_copy(update={"cancelling_at": cancelling_at}), written_at
        return status, written_at

    async def _cancel_requested_at(self, description: WorkflowExecutionDescription) -> int:
        """Return the Unix time at which a cancel of the run was requested; the current time if that cannot be read."""
        request = GetWorkflowExecutionHistoryReverseRequest(
            namespace=self._client.namespace,
            execution=WorkflowExecution(workflow_id=description.id, run_id=description.run_id),
            maximum_page_size=LAST_EVENTS,
        )
        with contextlib.suppress(*CALL_ERRORS):
            answer = await self._client.workflow_service.get_workflow_execution_history_reverse(
                request, timeout=HISTORY_LIMIT
            )
            for event in answer.history.events:
                if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
                    return event.event_time.seconds
        return int(time.time())


def _will_be_cancelled(description: WorkflowExecutionDescription) -> bool:
    """Return whether the next workflow task will include a cancel request; a task that has started may not have it."""
    raw = description.raw_description
    is_under_way = raw.pending_workflow_task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
    return raw.workflow_extended_info.cancel_requested and not is_under_way
