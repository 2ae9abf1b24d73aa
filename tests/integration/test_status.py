"""What a client sees of a running batch, whoever is down."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import openai
import pytest
from openai.types import Batch
from temporalio.client import Client, WorkflowHandle

from activities.temporal.connection import connect
from api.gateway.readiness import Readiness
from api.gateway.temporal import TemporalGateway
from api.gateway.workflow_reader import WorkflowReader
from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, progress_of, request, requests, until
from workflows.ids import BatchRef


def counts_of(batch: Batch) -> tuple[int, int, int]:
    counts = batch.request_counts
    assert counts
    return counts.total, counts.completed, counts.failed


async def test_without_a_worker_the_status_is_reported_and_why_nothing_moves(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2))
    asked = time.monotonic()
    # All at once: Temporal holds one query of a workflow at a time.
    answers = await asyncio.gather(*(it.get(batch_id) for _ in range(8)))
    assert time.monotonic() - asked < 4
    assert {(batch.status, progress_of(batch)["waiting"]["kind"]) for batch in answers} == {("validating", "worker")}
    assert (await it.http.get("/health")).status_code == 200
    ready = await it.http.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["missing"] == [f"no worker is polling the task queue {it.settings.task_queue}"]
    await it.start_worker()

    async def is_ready() -> bool:
        return (await it.http.get("/ready")).status_code == 200

    await until(is_ready, "ready")
    assert (await it.finished(batch_id)).counts == (2, 2, 0)


async def test_a_cancel_without_a_worker_takes_effect_when_one_comes(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="hangs")
    batch_id = await it.submit([request("ok-1"), request("hangs-2"), request("ok-3"), request("hangs-4")])
    await it.until(batch_id, lambda batch: counts_of(batch) == (4, 2, 0))
    await it.stop_worker()
    cancelled = await it.openai.batches.cancel(batch_id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at
    assert counts_of(cancelled) == (4, 2, 0)
    await it.until(batch_id, lambda batch: "worker" in str(progress_of(batch)["waiting"]))
    # Another API process, which has no memory of what was shown before, says the same.
    elsewhere = await it.another_api().batches.retrieve(batch_id)
    assert (elsewhere.status, elsewhere.cancelling_at) == ("cancelling", cancelled.cancelling_at)
    assert counts_of(elsewhere)[0] == 4
    assert (await it.openai.batches.cancel(batch_id)).cancelling_at == cancelled.cancelling_at
    await it.start_worker()
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("cancelled", (4, 2, 2))
    assert finished.error_codes == {"hangs-2": "batch_cancelled", "hangs-4": "batch_cancelled"}


async def test_counts_never_go_back_while_workers_come_and_go(stack: MakeStack) -> None:
    it = await stack(latency=0.05, heartbeat_timeout=5.0, max_in_flight=16)
    batch_id = await it.submit(requests(600))
    shown: list[tuple[int, int, int]] = []
    restarts = [100, 300]
    while (batch := await it.get(batch_id)).status != "completed":
        shown.append(counts_of(batch))
        if restarts and shown[-1][1] >= restarts[0]:
            restarts.pop(0)
            await it.stop_worker()
            shown.append(counts_of(await it.get(batch_id)))
            await it.start_worker()
    assert not restarts
    assert shown == sorted(shown)
    assert (await it.finished(batch_id)).counts == (600, 600, 0)
    assert set(it.engine.counters().answered.values()) == {1}


async def test_progress_is_reported(stack: MakeStack) -> None:
    it = await stack(latency=0.2, max_in_flight=64)
    batch_id = await it.submit(requests(1200))
    batch = await it.until(batch_id, lambda batch: progress_of(batch).get("eta_seconds"))
    progress = progress_of(batch)
    assert 0 < progress["requests_per_second"] < 64 / 0.2 * 1.5
    assert 0 < progress["eta_seconds"] < 600
    assert (progress["waiting_reason"], progress["next_attempt_at"]) == (None, None)


async def test_requests_in_flight_are_reported(stack: MakeStack) -> None:
    it = await stack(max_in_flight=20)
    it.script(mode="hang")
    batch_id = await it.submit(requests(501))
    # A group tells with its heartbeats; one that has not sent one yet is counted as none.
    await it.until(batch_id, lambda batch: progress_of(batch)["in_flight"] == 20)
    assert it.engine.counters().in_flight == 20


async def test_the_input_may_be_deleted_while_the_batch_runs(stack: MakeStack) -> None:
    it = await stack(latency=0.02, max_in_flight=8)
    file_id = await it.upload(requests(300))
    batch_id = (await it.create(file_id)).id
    await it.until(batch_id, lambda batch: counts_of(batch)[1] > 0)
    await it.openai.files.delete(file_id)
    finished = await it.finished(batch_id)
    assert finished.counts == (300, 300, 0)
    assert finished.batch.input_file_id == file_id


async def test_while_temporal_is_away_the_last_record_answers(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="r-1")
    batch_id = await it.submit(requests(2))
    await it.until(batch_id, lambda batch: counts_of(batch) == (2, 1, 0))
    nowhere = it.another_api(temporal=await connect("127.0.0.1:1", lazy=True))
    asked = time.monotonic()
    batch = await nowhere.batches.retrieve(batch_id)
    assert time.monotonic() - asked < 4
    assert batch.status == "in_progress"
    assert counts_of(batch)[0] == 2
    assert "does not answer" in progress_of(batch)["waiting_reason"]
    assert [one.id async for one in nowhere.batches.list()] == [batch_id]


async def test_a_hundred_pollers_share_looks(stack: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    it = await stack()
    it.script(mode="hang")
    batch_id = await it.submit(requests(2))
    await it.until(batch_id, lambda batch: batch.status == "in_progress")
    described: list[float] = []
    describe: Any = getattr(WorkflowHandle, "describe")  # noqa: B009 - pyright knows only part of its type

    async def counted(handle: Any, *args: Any, **options: Any) -> Any:
        described.append(time.monotonic())
        return await describe(handle, *args, **options)

    monkeypatch.setattr(WorkflowHandle, "describe", counted)
    began = time.monotonic()
    for _ in range(5):
        answers = await asyncio.gather(*(it.get(batch_id) for _ in range(20)))
        assert {batch.status for batch in answers} == {"in_progress"}
        await asyncio.sleep(0.1)
    assert 1 <= len(described) <= 1 + (time.monotonic() - began) / 0.25


async def test_a_change_is_seen_at_once_by_who_made_it(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang")
    batch_id = await it.submit(requests(2))
    await it.until(batch_id, lambda batch: batch.status == "in_progress")
    assert [batch.status async for batch in it.openai.batches.list()] == ["in_progress"]
    await it.openai.batches.cancel(batch_id)
    assert (await it.get(batch_id)).status in ("cancelling", "cancelled")
    assert [batch.status async for batch in it.openai.batches.list()] in (["cancelling"], ["cancelled"])


async def test_a_list_never_waits_for_a_worker(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="r-1")
    batch_id = await it.submit(requests(2))
    await it.until(batch_id, lambda batch: counts_of(batch) == (2, 1, 0))
    await it.stop_worker()
    without = await it.submit(requests(3))
    listed: dict[str, Batch] = {}
    for _ in range(3):
        asked = time.monotonic()
        listed = {batch.id: batch async for batch in it.openai.batches.list()}
        assert time.monotonic() - asked < 1.0  # a status takes two seconds to find that nobody answers
        assert (listed[batch_id].status, counts_of(listed[batch_id])) == ("in_progress", (2, 1, 0))
        assert listed[without].status == "validating"
        await asyncio.sleep(0.1)
    ages = [time.time() - progress_of(batch)["as_of"] for batch in listed.values()]
    assert all(0 <= age < 5 for age in ages)


async def test_a_worker_that_is_late_but_polls_is_not_called_gone(
    stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = await stack()
    it.script(mode="hang", match="r-1")
    batch_id = await it.submit(requests(2))
    await it.until(batch_id, lambda batch: counts_of(batch) == (2, 1, 0))

    async def late(_reader: WorkflowReader, _batch_id: str, _seconds: float) -> None:
        return None

    async def polled_just_now(_readiness: Readiness) -> bool:
        return True

    monkeypatch.setattr(WorkflowReader, "query", late)
    monkeypatch.setattr(Readiness, "was_polled", polled_just_now)
    await asyncio.sleep(0.3)  # what was seen before is too old by then
    batch = await it.get(batch_id)
    assert (batch.status, counts_of(batch)) == ("in_progress", (2, 1, 0))
    assert progress_of(batch)["waiting_reason"] is None
    assert progress_of(batch)["as_of"]


async def test_an_api_that_cannot_ask_the_workflow_says_how_old_its_counts_are(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="r-5")
    batch_id = await it.submit(requests(6))
    await it.until(batch_id, lambda batch: counts_of(batch) == (6, 5, 0))
    await it.stop_worker()
    await asyncio.sleep(1.1)  # ``as_of`` is in seconds
    asked = time.time()
    batch = await it.another_api().batches.retrieve(batch_id)
    assert progress_of(batch)["as_of"] < int(asked)


async def test_a_batch_that_temporal_has_lost(stack: MakeStack, empty_temporal: Client) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2))
    batch = await it.another_api(temporal=empty_temporal).batches.retrieve(batch_id)
    assert batch.status == "validating"
    assert "does not know this batch's workflow" in progress_of(batch)["waiting_reason"]
    # Only a claim of the moment: the right Temporal may come back, and then the batch goes on.
    assert it.catalog.get_final(BatchRef("default", batch_id)) is None
    await it.start_worker()
    assert (await it.finished(batch_id)).counts == (2, 2, 0)


async def test_a_wrong_namespace_is_no_end_of_a_batch(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2))
    client = Client(it.temporal.service_client, namespace="nowhere", data_converter=it.temporal.data_converter)
    astray = it.another_api(temporal=client)
    reason = "Temporal at temporal.example:7233 has no namespace nowhere"
    batch = await astray.batches.retrieve(batch_id)
    assert batch.status == "validating"
    assert reason in progress_of(batch)["waiting_reason"]
    with pytest.raises(openai.InternalServerError):
        await astray.batches.cancel(batch_id)
    with pytest.raises(openai.InternalServerError):
        await astray.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
    gateway = TemporalGateway(client, it.store, it.settings.task_queue, "temporal.example:7233")
    assert await gateway.missing() == [reason]


async def test_the_workflow_knows_when_its_time_is_over(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch = await it.create(await it.upload(requests(1)))
    description = await it.workflow(batch.id).describe()
    # The window is a timer of the workflow: a time limit of Temporal's would leave no one to write the files.
    assert description.raw_description.execution_config.workflow_execution_timeout.ToTimedelta() == timedelta()


async def test_ready_knows_within_ten_seconds_that_the_last_worker_is_gone(stack: MakeStack) -> None:
    it = await stack()
    gateway = TemporalGateway(it.temporal, it.store, it.settings.task_queue, "temporal.example:7233")

    async def has_worker() -> bool:
        return await gateway.missing() == []

    await until(has_worker, "ready", 10)
    await it.stop_worker()
    started = time.monotonic()

    async def has_none() -> bool:
        return not await has_worker()

    await until(has_none, "not ready", 10)
    assert await gateway.missing() == [f"no worker is polling the task queue {it.settings.task_queue}"]
    assert time.monotonic() - started < 10
    await it.start_worker()
    await until(has_worker, "ready again", 10)
