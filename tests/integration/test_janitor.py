"""The janitor as Temporal runs it."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import pytest
from openai import NotFoundError
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import ScheduleActionExecutionStartWorkflow, ScheduleOverlapPolicy

from activities.temporal.schedule import prepare_schedule, schedule_id
from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, requests, until
from workflows.contract import JANITOR_WORKFLOW
from workflows.types import DeleteExpiredInput, DeleteExpiredResult

TENANT = "default"


async def expired_file(it: Stack) -> str:
    """A file that a client has uploaded, a while later."""
    file_id, past = await it.upload(requests(2)), int(time.time()) - 1
    record = it.catalog.get_file(TENANT, file_id)
    it.catalog.save_file(TENANT, record.model_copy(update={"expires_at": past}))
    it.catalog.remind("file", TENANT, file_id, past)
    return file_id


async def test_the_schedule_deletes_an_expired_file(stack: MakeStack) -> None:
    it = await stack()
    queue = it.settings.task_queue
    await prepare_schedule(it.temporal, queue, timedelta(hours=2))
    schedule = it.temporal.get_schedule_handle(schedule_id(queue))
    await schedule.pause()
    await prepare_schedule(it.temporal, queue, timedelta(hours=1))
    description = await schedule.describe()
    assert [interval.every for interval in description.schedule.spec.intervals] == [timedelta(hours=1)]
    assert description.schedule.policy.overlap is ScheduleOverlapPolicy.SKIP
    assert description.schedule.policy.catchup_window == timedelta(hours=1)
    assert description.schedule.state.paused, "an operator's pause outlives a restart"

    file_id, stays = await expired_file(it), await it.upload(requests(1))
    with pytest.raises(NotFoundError):
        await it.openai.files.retrieve(file_id)
    assert len(list(it.store.list(f"files/{TENANT}/{file_id}/"))) == 2

    await schedule.trigger()

    async def started() -> str:
        actions = (await schedule.describe()).info.recent_actions
        action = actions[0].action if actions else None
        return action.workflow_id if isinstance(action, ScheduleActionExecutionStartWorkflow) else ""

    run = it.temporal.get_workflow_handle(await until(started, "a run"), result_type=DeleteExpiredResult)
    assert await run.result() == DeleteExpiredResult(files=1)
    # Its place in the list stays for a day.
    assert list(it.store.list(f"files/{TENANT}/{file_id}/")) == [f"files/{TENANT}/{file_id}/deleted"]
    assert [file.id async for file in it.openai.files.list()] == [stays]
    assert await (await run.describe()).static_summary() == "delete expired files and leftovers"
    details = (await run.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)).current_details
    assert "| files deleted | 1 |" in details
    await schedule.delete()


async def test_what_is_more_than_one_attempt_may_do_is_done_by_several(stack: MakeStack) -> None:
    it = await stack()
    for _ in range(3):
        await expired_file(it)
    run = await it.temporal.start_workflow(
        JANITOR_WORKFLOW,
        DeleteExpiredInput(limit=2),
        id=f"janitor-{uuid.uuid4().hex}",
        task_queue=it.settings.task_queue,
        result_type=DeleteExpiredResult,
    )
    assert await run.result() == DeleteExpiredResult(files=3)
    assert {key.rpartition("/")[2] for key in it.store.list("files/")} == {"deleted"}
    events = [event async for event in run.fetch_history_events()]
    assert sum(event.HasField("activity_task_scheduled_event_attributes") for event in events) == 2
