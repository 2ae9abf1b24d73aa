"""Recorded runs go on with the workflow as it is now: what runs while Everbatch is upgraded is not broken by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from workflows.batch import BatchWorkflow
from workflows.types import BatchSpec, BatchStatus

HISTORIES = sorted((Path(__file__).parents[1] / "histories").glob("*.json"))


@workflow.defn(name="Batch")
class SkipsValidation(BatchWorkflow):
    @workflow.init
    def __init__(self, spec: BatchSpec) -> None:
        super().__init__(spec)

    @workflow.run
    async def run(self, spec: BatchSpec) -> BatchStatus:
        return await super().run(spec)

    async def _work(self) -> None:
        return


def history(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(path.stem, path.read_text())


def test_there_are_histories_of_every_end() -> None:
    ends = {path.stem.partition("_")[0] for path in HISTORIES}
    assert {"completed", "failed", "cancelled", "expired", "shard"} <= ends
    assert sum(path.stat().st_size for path in HISTORIES) < 1_000_000


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_run_replays(path: Path) -> None:
    replayer = Replayer(workflows=[BatchWorkflow], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(history(path))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_recorded_run_has_ended(path: Path) -> None:
    events = json.loads(path.read_text())["events"]
    outcome = {"cancelled": "CANCELED", "failed": "FAILED", "expired": "FAILED"}.get(path.stem.partition("_")[0])
    assert events[-1]["eventType"] == f"EVENT_TYPE_WORKFLOW_EXECUTION_{outcome or 'COMPLETED'}"


async def test_a_workflow_that_does_otherwise_is_noticed() -> None:
    replayer = Replayer(
        workflows=[SkipsValidation],
        data_converter=pydantic_data_converter,
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(history(next(path for path in HISTORIES if path.stem == "completed_single")))
