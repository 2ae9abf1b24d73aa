"""A paused batch sends nothing more; resumed it goes on where it was."""

from __future__ import annotations

import time
from typing import Any

import pytest
from temporalio.api.enums.v1 import PendingActivityState

from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, progress_of, requests, until


async def send(it: Stack, batch_id: str, verb: str) -> dict[str, Any]:
    answer = await it.http.post(f"/v1/batches/{batch_id}/{verb}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def paused_mid_run(it: Stack, count: int) -> str:
    batch_id = await it.submit(requests(count))
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed > 0)
    await send(it, batch_id, "pause")

    async def quiet() -> bool:
        """Shards hear of it with their heartbeats; then none runs any more."""
        pending = (await it.workflow(batch_id).describe()).raw_description.pending_activities
        states = {PendingActivityState.Name(one.state) for one in pending}
        return states <= {"PENDING_ACTIVITY_STATE_PAUSED"}

    await until(quiet, "quiet")
    return batch_id


@pytest.mark.parametrize(("count", "in_flight"), [(50, 8), (640, 32)], ids=["single", "grouped"])
async def test_paused_and_resumed(stack: MakeStack, count: int, in_flight: int) -> None:
    it = await stack(latency=0.5, max_in_flight=in_flight)
    batch_id = await paused_mid_run(it, count)
    received = it.engine.counters().received_total
    assert received < count
    batch = await it.get(batch_id)
    assert batch.status == "in_progress"
    assert progress_of(batch)["waiting"]["kind"] == "pause"
    # Another batch is not held up by it, and has gone all its way without one more request of this one.
    assert (await it.run(requests(5, prefix="other"))).counts == (5, 5, 0)
    assert it.engine.counters().received_total == received + 5
    await send(it, batch_id, "pause")  # is no error
    it.script(latency=0.0)
    await send(it, batch_id, "resume")
    finished = await it.finished(batch_id)
    assert finished.counts == (count, count, 0)
    assert finished.answered == [f"r-{number}" for number in range(count)]
    assert set(it.engine.counters().received.values()) == {1}


async def test_a_paused_batch_can_be_cancelled(stack: MakeStack) -> None:
    it = await stack(latency=0.2, max_in_flight=8)
    batch_id = await paused_mid_run(it, 100)
    received = it.engine.counters().received_total
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    assert finished.batch.status == "cancelled"
    assert finished.counts == (100, received, 100 - received)


async def test_a_cancel_reaches_what_a_pause_left_in_flight(stack: MakeStack) -> None:
    it = await stack(latency=60.0, max_in_flight=8)
    batch_id = await it.submit(requests(20))

    async def in_flight() -> bool:
        return it.engine.counters().in_flight == 8

    await until(in_flight, "in flight")
    await send(it, batch_id, "pause")

    paused_at = time.time()

    async def is_paused() -> bool:
        """The answer to the first heartbeat after the pause tells of it; this is one of those behind that."""
        pending = (await it.workflow(batch_id).describe()).raw_description.pending_activities
        running = [one for one in pending if one.state == PendingActivityState.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED]
        return len(running) == 8 and all(one.last_heartbeat_time.seconds > paused_at + 3 for one in running)

    await until(is_paused, "the pause")
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id, seconds=20)  # and not when the engine answers
    assert (finished.batch.status, finished.counts) == ("cancelled", (20, 0, 20))
    assert it.engine.counters().in_flight == 0


async def test_the_window_runs_on_while_a_batch_is_paused(stack: MakeStack) -> None:
    it = await stack(worker=False, completion_windows="4s")
    batch_id = await it.submit(requests(3), window="4s")
    await send(it, batch_id, "pause")
    await it.start_worker()
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("expired", (3, 0, 3))
    assert it.engine.counters().received_total == 0


async def test_what_has_ended_cannot_be_paused(stack: MakeStack) -> None:
    it = await stack()
    finished = await it.run(requests(1))
    answer = await it.http.post(f"/v1/batches/{finished.batch.id}/pause")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert (await it.http.post("/v1/batches/batch_unknown/pause")).status_code == 404
