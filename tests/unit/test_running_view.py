"""A running batch as the gateway shows it, from what Temporal and its workflow say of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import TypedSearchAttributes
from temporalio.converter import DataConverter

from activities.records.catalog import Catalog
from activities.store.local import LocalStore
from api.gateway.interface import BatchView, Progress
from api.gateway.temporal import TemporalGateway
from tests.fakes.worker import make_spec
from workflows.events import History, PastWait
from workflows.types import BatchPhase, BatchRecord, BatchStatus, Counts, ShardProgress
from workflows.waits import WaitKind

NOW = time.time()
SPEC = make_spec(batch_id=f"batch_{'1' * 32}", created_ms=int(NOW - 3600) * 1000)


class Description(WorkflowExecutionDescription):
    """Of a run that has written no memo."""

    def __init__(self, pending: list[PendingActivityInfo]) -> None:
        self.raw_description = DescribeWorkflowExecutionResponse(pending_activities=pending)
        self.typed_search_attributes = TypedSearchAttributes([])
        self.status = WorkflowExecutionStatus.RUNNING

    async def memo_value(self, key: str, default: Any = None, **_: Any) -> Any:
        return default


class Workflow:
    """Temporal's client, and the handle of the one workflow."""

    data_converter = DataConverter.default
    namespace = "default"

    def __init__(self, status: BatchStatus) -> None:
        self.reported: BatchStatus | None = status
        self.pending: list[PendingActivityInfo] = []

    def get_workflow_handle_for(self, *_: Any) -> Workflow:
        return self

    async def describe(self) -> WorkflowExecutionDescription:
        return Description(self.pending)

    @property
    def workflow_service(self) -> Any:
        raise RuntimeError("nobody asks who else is there")

    async def query(self, *_: Any, **__: Any) -> BatchStatus:
        if self.reported is None:
            raise TimeoutError
        return self.reported


def running(shard: int, said: ShardProgress) -> PendingActivityInfo:
    now = Timestamp(seconds=int(time.time()))
    info = PendingActivityInfo(
        activity_id=f"shard-{shard}",
        state=PendingActivityState.PENDING_ACTIVITY_STATE_STARTED,
        last_heartbeat_time=now,
        last_started_time=now,
    )
    info.heartbeat_details.CopyFrom(Payloads(payloads=[Payload(data=said.model_dump_json().encode())]))
    return info


class Shown:
    def __init__(self, store: Path, **status: Any) -> None:
        self.workflow = Workflow(BatchStatus(phase=BatchPhase.IN_PROGRESS, **status))
        self._gateway = TemporalGateway(cast(Client, self.workflow), LocalStore(str(store)), "q", "")

        self._record = BatchRecord(spec=SPEC, status=BatchStatus())
        Catalog(LocalStore(str(store))).save_running(self._record)

    async def find(self) -> tuple[BatchStatus, Progress]:
        """As it is kept for the next who asks."""
        return _parts(await self._gateway.find(SPEC.ref))

    async def view(self) -> tuple[BatchStatus, Progress]:
        """As it is now."""
        return _parts(await self._gateway.view(self._record))


def _parts(view: BatchView) -> tuple[BatchStatus, Progress]:
    assert view.progress
    return view.record.status, view.progress


async def test_what_running_shards_have_done_counts_once_in_the_rate(tmp_path: Path) -> None:
    now = time.time()
    shown = Shown(tmp_path, counts=Counts(total=300), rate_since=now - 100, rate_done=0)
    shown.workflow.pending = [running(0, ShardProgress(completed=100, in_flight=8, done_at=now))]
    status, progress = await shown.view()
    assert status.counts.completed == 100
    assert progress.requests_per_second == pytest.approx(1.0, rel=0.02)


async def test_a_wait_that_has_ended_is_shown_so_where_the_workflow_does_not_answer(tmp_path: Path) -> None:
    began = int(NOW) - 60
    wait = PastWait(kind=WaitKind.UPSTREAM, subject="gpu", reason="is away", began=began)
    over = wait.model_copy(update={"subject": "store", "ended": began + 5})
    shown = Shown(tmp_path, counts=Counts(total=300), history=History(waits=[over]))
    shown.workflow.pending = [running(0, ShardProgress(waits=[wait]))]
    status, _ = await shown.find()
    assert [(one.subject, one.ended) for one in status.history.waits] == [("store", began + 5), ("gpu", None)]
    shown.workflow.reported = None
    shown.workflow.pending = [running(0, ShardProgress(waits=[wait.model_copy(update={"ended": began + 30})]))]
    status, _ = await shown.view()
    assert [(one.subject, one.ended) for one in status.history.waits] == [("store", began + 5), ("gpu", began + 30)]
