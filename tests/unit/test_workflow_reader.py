"""What is known of a run without a word of its workflow."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.enums.v1 import PendingWorkflowTaskState
from temporalio.api.workflow.v1 import PendingWorkflowTaskInfo, WorkflowExecutionExtendedInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse
from temporalio.client import WorkflowExecutionDescription
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from api.gateway.workflow_reader import WorkflowReader
from tests.fakes.worker import make_spec
from workflows.contract import STATUS_ATTRIBUTE
from workflows.types import BatchPhase, BatchRecord, BatchStatus

STARTED = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
SCHEDULED = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
REQUESTED_AT = 1_700_000_100


class Described(WorkflowExecutionDescription):
    """A run that has written no memo."""

    def __init__(self, raw: DescribeWorkflowExecutionResponse, phase: BatchPhase) -> None:
        self.raw_description = raw
        self.typed_search_attributes = TypedSearchAttributes([SearchAttributePair(STATUS_ATTRIBUTE, phase.value)])

    async def memo_value(self, key: str, default: Any = None, **_: Any) -> Any:
        return default


class Reader(WorkflowReader):
    async def _cancel_requested_at(self, description: WorkflowExecutionDescription) -> int:
        return REQUESTED_AT


async def status(phase: BatchPhase, *, cancel_requested: bool, task: PendingWorkflowTaskState.ValueType) -> BatchStatus:
    raw = DescribeWorkflowExecutionResponse(
        workflow_extended_info=WorkflowExecutionExtendedInfo(cancel_requested=cancel_requested),
        pending_workflow_task=PendingWorkflowTaskInfo(state=task),
    )
    reader = Reader.__new__(Reader)
    found, _ = await reader.status(BatchRecord(spec=make_spec(), status=BatchStatus()), Described(raw, phase))
    return found


async def test_a_cancel_that_no_worker_has_taken_in_is_shown() -> None:
    found = await status(BatchPhase.IN_PROGRESS, cancel_requested=True, task=SCHEDULED)
    assert (found.cancelling_at, found.outcome) == (REQUESTED_AT, None)


async def test_a_workflow_task_that_is_under_way_may_not_have_the_cancel() -> None:
    found = await status(BatchPhase.FINALIZING, cancel_requested=True, task=STARTED)
    assert (found.cancelling_at, found.outcome) == (None, None)


@pytest.mark.parametrize("outcome", [BatchPhase.COMPLETED, BatchPhase.CANCELLED])
async def test_what_is_decided_is_not_cancelled_any_more(outcome: BatchPhase) -> None:
    found = await status(outcome, cancel_requested=True, task=SCHEDULED)
    assert (found.cancelling_at, found.outcome) == (None, outcome)


async def test_what_nobody_cancelled_is_not_cancelled() -> None:
    found = await status(BatchPhase.IN_PROGRESS, cancel_requested=False, task=SCHEDULED)
    assert (found.cancelling_at, found.outcome) == (None, None)
