"""A worker that stops in the middle of a batch, and what it leaves behind. For a test and ``benchmarks.restarts``."""

from __future__ import annotations

import signal
import time

from temporalio.api.enums.v1 import PendingActivityState, PendingWorkflowTaskState
from temporalio.client import Client

from tests.e2e.processes import Child


async def stopped(worker: Child) -> float:
    """Stop a worker with SIGTERM; the seconds that it took."""
    started = time.monotonic()
    worker.send(signal.SIGTERM)
    assert await worker.wait(60) == 0, worker.stderr
    worker.check_clean_exit()
    return time.monotonic() - started


async def left_behind(temporal: Client, batch_id: str, worker: Child) -> list[str]:
    """Tasks of a batch that, by Temporal's account, run in a worker that is gone: each waits for a timeout.

    There must be no other worker: Temporal does not say whose a workflow task is.
    """
    description = (await temporal.get_workflow_handle(batch_id).describe()).raw_description
    started = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
    activities = [
        one.activity_id
        for one in description.pending_activities
        if one.state == started and one.last_worker_identity.startswith(f"{worker.pid}@")
    ]
    task = description.pending_workflow_task
    is_started = task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
    return [*activities, "a workflow task"] if is_started else activities
