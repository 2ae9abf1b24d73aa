"""What a client is told of a running batch, whoever is down."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import openai
import pytest
from openai.types import Batch
from temporalio.client import Client

from activities.connection import connect
from api.gateway import TemporalGateway
from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, progress_of, request, requests, until


def counts_of(batch: Batch) -> tuple[int, int, int]:
    counts = batch.request_counts
    assert counts
    return counts.total, counts.completed, counts.failed


async def test_without_a_worker_the_status_is_told_and_why_nothing_moves(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2))
    asked = time.monotonic()
    # All at once: Temporal holds one query of a workflow at a time.
    answers = await asyncio.gather(*(it.get(batch_id) for _ in range(8)))
    assert time.monotonic() - asked < 4
    assert {(batch.status, progress_of(batch)["waiting_reason"]) for batch in answers} == {
        ("validating", "no worker answers")
    }
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
    assert progress_of(cancelled)["waiting_reason"] == "no worker answers"
    assert counts_of(cancelled) == (4, 2, 0)
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
    it = await stack(latency=0.05, heartbeat_timeout=5.0)
    batch_id = await it.submit(requests(1500))
    shown: list[tuple[int, int, int]] = []
    restarts = [300, 800]
    while (batch := await it.get(batch_id)).status != "completed":
        shown.append(counts_of(batch))
        if restarts and shown[-1][1] >= restarts[0]:
            restarts.pop(0)
            await it.stop_worker()
            shown.append(counts_of(await it.get(batch_id)))
            await it.start_worker()
    assert not restarts
    assert shown == sorted(shown)
    assert (await it.finished(batch_id)).counts == (1500, 1500, 0)
    assert set(it.engine.counters().answered.values()) == {1}


async def test_progress_is_told(stack: MakeStack) -> None:
    it = await stack(latency=0.2)
    batch_id = await it.submit(requests(1200))
    batch = await it.until(batch_id, lambda batch: progress_of(batch).get("eta_seconds"))
    progress = progress_of(batch)
    assert 0 < progress["requests_per_second"] < 64 / 0.2 * 1.5
    assert 0 < progress["eta_seconds"] < 600
    assert (progress["waiting_reason"], progress["next_attempt_at"]) == (None, None)


async def test_requests_in_flight_are_told(stack: MakeStack) -> None:
    it = await stack(max_in_flight=20)
    it.script(mode="hang")
    batch_id = await it.submit(requests(501))
    # A group tells with its heartbeats; one that has not sent one yet is counted as none.
    await it.until(batch_id, lambda batch: progress_of(batch)["in_flight"] == 20)
    assert it.engine.counters().in_flight == 20


async def test_the_input_may_be_deleted_while_the_batch_runs(stack: MakeStack) -> None:
    it = await stack(latency=0.02)
    file_id = await it.upload(requests(1000))
    batch_id = (await it.create(file_id)).id
    await it.until(batch_id, lambda batch: counts_of(batch)[1] > 0)
    await it.openai.files.delete(file_id)
    finished = await it.finished(batch_id)
    assert finished.counts == (1000, 1000, 0)
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


async def test_a_batch_that_temporal_has_lost(stack: MakeStack, empty_temporal: Client) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2))
    batch = await it.another_api(temporal=empty_temporal).batches.retrieve(batch_id)
    assert batch.status == "failed"
    assert batch.errors
    assert batch.errors.data
    assert batch.errors.data[0].code == "batch_lost"
    # Only a claim of the moment: the right Temporal may come back, and then the batch goes on.
    assert it.catalog.get_final("default", batch_id) is None
    await it.start_worker()
    assert (await it.finished(batch_id)).counts == (2, 2, 0)


async def test_a_wrong_namespace_is_no_end_of_a_batch(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2))
    client = Client(it.temporal.service_client, namespace="nowhere", data_converter=it.temporal.data_converter)
    astray = it.another_api(temporal=client)
    reason = "Temporal at temporal.example:7233 has no namespace nowhere"
    batch = await astray.batches.retrieve(batch_id)
    assert (batch.status, progress_of(batch)["waiting_reason"]) == ("validating", reason)
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
