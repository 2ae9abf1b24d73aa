"""Attempts at a shard that end by themselves are no losses, whatever ends them."""

from __future__ import annotations

from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetActivityRequest

from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, requests, until
from workflows import contract
from workflows.types import ShardProgress


async def progress(it: Stack, batch_id: str, attempts: int) -> list[ShardProgress]:
    """What the shards have said last, once each has had so many attempts."""

    async def look() -> list[ShardProgress]:
        description = await it.temporal.get_workflow_handle(batch_id).describe()
        pending = description.raw_description.pending_activities
        if not pending or any(one.attempt <= attempts or not one.heartbeat_details.payloads for one in pending):
            return []
        return [ShardProgress.model_validate_json(one.heartbeat_details.payloads[0].data) for one in pending]

    return await until(look, f"{attempts} attempts", 60)


async def test_attempts_that_end_by_themselves_are_no_losses(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=503)
    batch_id = await it.submit(requests(3))
    said = await progress(it, batch_id, 4)
    assert {(one.has_ended, one.losses) for one in said} == {(True, 0)}
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)


async def test_a_worker_that_stops_and_comes_back_is_no_loss(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang")
    batch_id = await it.submit(requests(3))
    for number in (1, 2):
        await it.until(batch_id, lambda _: it.engine.counters().in_flight == 3)
        await it.stop_worker()
        said = await progress(it, batch_id, number)
        assert {(one.has_ended, one.losses) for one in said} == {(True, 0)}
        await it.start_worker()
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)


async def test_a_batch_that_is_paused_is_no_loss(stack: MakeStack) -> None:
    it = await stack(latency=1.5, max_in_flight=64)
    batch_id = await it.submit(requests(300))
    await it.until(batch_id, lambda _: it.engine.counters().in_flight == 64)
    it.script(mode="status", status=503)
    batch: Any = it.temporal.get_workflow_handle(batch_id)
    await batch.signal(contract.PAUSE_SIGNAL)
    await it.until(batch_id, lambda _: it.engine.counters().in_flight == 0)
    await batch.signal(contract.RESUME_SIGNAL)
    said = await progress(it, batch_id, 2)
    assert {(one.has_ended, one.losses) for one in said} == {(True, 0)}
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)


async def test_an_activity_that_is_reset_is_no_loss(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang")
    batch_id = await it.submit(requests(3))
    await it.until(batch_id, lambda _: it.engine.counters().in_flight == 3)
    it.script(mode="status", status=503)
    for number in range(1, 4):
        await it.temporal.workflow_service.reset_activity(
            ResetActivityRequest(
                namespace=it.temporal.namespace,
                execution=WorkflowExecution(workflow_id=batch_id),
                id=f"line-{number}",
            )
        )
    said = await progress(it, batch_id, 2)
    assert {(one.has_ended, one.losses) for one in said} == {(True, 0)}
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)
