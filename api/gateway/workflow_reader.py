"""What Temporal says of a batch's workflow, each question within a time limit."""

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
"""Of a call with a time limit: Temporal refuses, or does not answer in time."""
MIN_SECONDS: Final = 0.1
"""For one question, however late it is."""
LAST_EVENTS: Final = 100
"""Of a history, among which a cancel is looked for."""
HISTORY_LIMIT: Final = timedelta(seconds=1)

Handle = WorkflowHandle[BatchWorkflow, BatchStatus]


def batches_of(task_queue: str) -> str:
    """Temporal's query for the workflows of all batches."""
    return f"WorkflowType = '{contract.BATCH_WORKFLOW}' AND TaskQueue = '{task_queue}'"


class WorkflowReader:
    """Reads only."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answered_at = float("-inf")

    def handle(self, batch_id: str) -> Handle:
        return self._client.get_workflow_handle_for(BatchWorkflow.run, batch_id)

    async def describe(self, batch_id: str, seconds: float) -> WorkflowExecutionDescription:
        """Raises ``TimeoutError`` or one of ``CALL_ERRORS``."""
        async with asyncio.timeout(seconds):
            description = await self.handle(batch_id).describe()
        self._answered_at = time.monotonic()
        return description

    @property
    def silent_seconds(self) -> float:
        """Since Temporal has described anything at all."""
        return time.monotonic() - self._answered_at

    async def query(self, batch_id: str, seconds: float) -> BatchStatus | None:
        """The workflow's own status; ``None`` where its worker does not say in time."""
        seconds = max(MIN_SECONDS, seconds)
        try:
            # Temporal holds one query of a workflow at a time and refuses the next; the SDK then tries again for far
            # longer than the limit of the single call.
            async with asyncio.timeout(seconds):
                return await self.handle(batch_id).query(BatchWorkflow.status, rpc_timeout=timedelta(seconds=seconds))
        except (TimeoutError, WorkflowQueryFailedError, WorkflowQueryRejectedError, *CALL_ERRORS):
            return None

    async def status(
        self, record: BatchRecord, description: WorkflowExecutionDescription
    ) -> tuple[BatchStatus, int | None]:
        """What is known of a run without a word of its workflow: what that last wrote for this, over ``record``; and
        when it wrote it, in Unix seconds, if it has.

        A cancel is shown once it is certain that the workflow takes it in before it decides on its outcome.
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
        """When Temporal was asked to cancel a run, in Unix seconds; now, where that cannot be read."""
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
    """Whether a cancel was requested that the next workflow task takes in; one that is under way may not have it."""
    raw = description.raw_description
    is_under_way = raw.pending_workflow_task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
    return raw.workflow_extended_info.cancel_requested and not is_under_way
