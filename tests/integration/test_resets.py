"""An operator resets the workflow of a batch in Temporal: nothing that is committed is sent again, nothing is lost."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest

from tests.fakes.engine_script import Script
from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, request, requests
from tests.integration.test_upstreams import Engines
from tests.s3_server import BUCKET, S3Server


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    engines = Engines(tmp_path)
    yield engines
    await engines.close()


async def reset_points(it: Stack, batch_id: str) -> list[tuple[str, int]]:
    """Run and event of each place to which the workflow can be reset."""
    run_id = (await it.workflow(batch_id).describe()).run_id
    history = await it.temporal.get_workflow_handle(batch_id, run_id=run_id).fetch_history()
    completed = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    return [(run_id, event.event_id) for event in history.events if event.event_type == completed]


async def reset(it: Stack, batch_id: str, point: tuple[str, int]) -> None:
    run_id, event_id = point
    await it.temporal.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=it.temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=batch_id, run_id=run_id),
            reason="a test",
            workflow_task_finish_event_id=event_id,
            request_id=str(uuid.uuid4()),
        )
    )


def some_hang(count: int, *models: str) -> list[dict[str, Any]]:
    names = [f"{'ok' if n % 3 else 'hangs'}-{n}" for n in range(count)]
    return [request(name, model=models[n % len(models)]) for n, name in enumerate(names)]


async def begin_and_lose_the_file(it: Stack, lines: list[dict[str, Any]]) -> str:
    """A batch of which every third request hangs and the others are committed. Its input file is deleted."""
    file_id = await it.upload(lines)
    batch_id = (await it.create(file_id)).id
    done = sum(line["custom_id"].startswith("ok") for line in lines)
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == done)
    await it.openai.files.delete(file_id)
    return batch_id


@pytest.fixture(params=["folder", "s3"])
def place_of_store(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of a store."""
    if request.param == "folder":
        return {}
    server: S3Server = request.getfixturevalue("s3_server")
    return {"store": f"s3://{BUCKET}/{uuid.uuid4().hex}", **server.settings}


async def test_a_batch_that_has_ended_is_reset_to_every_event(stack: MakeStack, place_of_store: dict[str, Any]) -> None:
    it = await stack(**place_of_store)
    it.script(mode="status", status=400, match="r-9")
    file_id = await it.upload(requests(70))
    batch_id = (await it.create(file_id)).id
    first = await it.finished(batch_id)
    assert await it.end_of_run(batch_id) == ("COMPLETED", "")
    await it.openai.files.delete(file_id)
    sent = it.engine.counters().received_total
    points = await reset_points(it, batch_id)
    assert len(points) >= 4  # start, validated, requests done (in one workflow task or several), files written
    for point in points:
        await reset(it, batch_id, point)
        assert await it.end_of_run(batch_id) == ("COMPLETED", "")
        assert first.counts == (70, 69, 1)
        again = await it.finished(batch_id)
        assert (again.batch, again.raw_output, again.raw_errors) == (first.batch, first.raw_output, first.raw_errors)
    assert it.engine.counters().received_total == sent


@pytest.mark.parametrize("ended", ["cancelled", "failed", "expired"])
async def test_a_batch_that_did_not_complete_is_reset_to_every_event(stack: MakeStack, ended: str) -> None:
    it = await stack()
    it.script(mode="hang", match="r-1")
    lines = ["no JSON"] if ended == "failed" else requests(2)
    batch_id = await it.submit(lines, window="2s" if ended == "expired" else "24h")
    if ended == "cancelled":
        await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 1)
        await it.openai.batches.cancel(batch_id)
    first, end = await it.finished(batch_id), await it.end_of_run(batch_id)
    assert (first.batch.status, end[0]) == (ended, "CANCELED" if ended == "cancelled" else "FAILED")
    sent = it.engine.counters().received_total
    for point in await reset_points(it, batch_id):
        await reset(it, batch_id, point)
        assert await it.end_of_run(batch_id) == end
        again = await it.finished(batch_id)
        assert (again.batch, again.raw_output, again.raw_errors) == (first.batch, first.raw_output, first.raw_errors)
    assert it.engine.counters().received_total == sent


@pytest.mark.parametrize(
    ("place_of_store", "place"),
    [("folder", 0), ("folder", 1), ("folder", -1), ("s3", 0)],
    ids=["first", "validated", "last", "first on S3"],
    indirect=["place_of_store"],
)
async def test_a_batch_that_runs_is_reset(stack: MakeStack, place_of_store: dict[str, Any], place: int) -> None:
    it = await stack(**place_of_store)
    it.script(mode="hang", match="hangs")
    lines = some_hang(70, "fake")
    batch_id = await begin_and_lose_the_file(it, lines)
    it.script()
    await reset(it, batch_id, (await reset_points(it, batch_id))[place])
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("completed", (70, 70, 0))
    assert finished.answered == [line["custom_id"] for line in lines]
    received = it.engine.counters().received
    assert {received[name] for name in received if name.startswith("ok")} == {1}


@pytest.mark.parametrize("ends", ["completed", "cancelled"])
async def test_a_batch_is_reset_when_its_models_have_moved(stack: MakeStack, engines: Engines, ends: str) -> None:
    await engines.start("one", "a", "b", models='["a", "b"]')
    before = engines.save("before.toml")
    old = await stack(upstreams=before)
    engines.engines[0].follow(Script(mode="hang", match="hangs"))
    lines = some_hang(70, "a", "b")
    batch_id = await begin_and_lose_the_file(old, lines)
    await old.stop_worker()
    engines.entries.clear()
    await engines.start("two", "b", models='["b"]')
    await engines.start("three", "a", models='["a"]')
    after = engines.save("after.toml")
    if ends == "cancelled":
        for engine in engines.engines:
            engine.follow(Script(mode="hang", match="hangs"))
    place = (await reset_points(old, batch_id))[0]
    await reset(old, batch_id, place)
    it = await stack(
        upstreams=after,
        store=old.settings.store,
        task_queue=old.settings.task_queue,
    )
    if ends == "cancelled":
        await it.until(batch_id, lambda _: sum(e.counters().in_flight for e in engines.engines[1:]) == 24)
        await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    names = [line["custom_id"] for line in lines]
    hanging = [name for name in names if name.startswith("hangs")]
    assert finished.batch.status == ends
    assert finished.answered == [name for name in names if ends == "completed" or name not in hanging]
    assert finished.refused == ([] if ends == "completed" else hanging)
    assert {name for engine in engines.engines[1:] for name in engine.counters().received} == set(hanging)
