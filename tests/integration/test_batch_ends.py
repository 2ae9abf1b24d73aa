"""Batches that end before their work is done: cancelled by the API, from Temporal, terminated, out of time."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from temporalio.client import Client

from api.gateway.temporal import TemporalGateway
from tests.integration.conftest import MakeStack
from tests.integration.stack import Finished, Stack, progress_of, request, requests, until
from workflows.ids import BatchRef


async def half_done(it: Stack) -> str:
    """A batch of 20 of which every other request is answered and the rest hangs."""
    it.script(mode="hang", match="hangs")
    batch_id = await it.submit([request(f"{'hangs' if number % 2 else 'ok'}-{number}") for number in range(20)])

    async def settled() -> bool:
        counters = it.engine.counters()
        return (counters.answered_total, counters.in_flight) == (10, 10)

    await until(settled, "ten answers")
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 10)
    return batch_id


def check_partial(it: Stack, finished: Finished, status: str, code: str) -> None:
    batch = finished.batch
    assert batch.status == status
    assert finished.counts == (20, 10, 10)
    assert finished.answered == [f"ok-{number}" for number in range(0, 20, 2)]
    assert finished.refused == [f"hangs-{number}" for number in range(1, 20, 2)]
    assert set(finished.error_codes.values()) == {code}
    assert {line["response"] for line in finished.errors} == {None}
    assert batch.usage
    assert batch.usage.total_tokens == 10 * 30
    assert batch.finalizing_at
    assert batch.completed_at is None
    counters = it.engine.counters()
    assert (counters.aborted, counters.in_flight) == (10, 0)  # the engine saw its connections closed
    assert set(counters.received.values()) == {1}


async def test_cancelled_mid_run(stack: MakeStack) -> None:
    it = await stack()
    batch_id = await half_done(it)
    cancelled = await it.openai.batches.cancel(batch_id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at
    again = await it.openai.batches.cancel(batch_id)
    assert again.cancelling_at == cancelled.cancelling_at
    assert again.status in ("cancelling", "cancelled")
    finished = await it.finished(batch_id)
    check_partial(it, finished, "cancelled", "batch_cancelled")
    assert finished.batch.cancelling_at == cancelled.cancelling_at
    assert finished.batch.cancelled_at
    assert finished.batch.cancelled_at >= cancelled.cancelling_at
    # Once it is cancelled there is nothing left to do, which is no error.
    assert await it.openai.batches.cancel(batch_id) == finished.batch
    assert await it.end_of_run(batch_id) == ("CANCELED", "")


async def test_a_group_that_is_cancelled_keeps_what_is_answered(stack: MakeStack) -> None:
    it = await stack(max_in_flight=64)  # else requests that hang would use up a low level, one after the other for 30 s
    it.script(mode="hang", match="r-59")
    batch_id = await it.submit(requests(600))
    # Of a group that runs, the counts are those in its last heartbeat.
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 589)
    await it.until(batch_id, lambda _: it.engine.counters().in_flight == 11)
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    assert finished.batch.status == "cancelled"
    assert finished.counts == (600, 589, 11)
    assert finished.refused == ["r-59", *(f"r-{number}" for number in range(590, 600))]
    assert it.engine.counters().aborted == 11


async def test_cancelled_while_it_waits_for_the_engine(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=503, retry_after=600)
    batch_id = await it.submit(requests(3))
    await it.until(batch_id, lambda batch: progress_of(batch).get("waiting_reason"))
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("cancelled", (3, 0, 3))
    assert finished.batch.output_file_id is None
    assert set(finished.error_codes.values()) == {"batch_cancelled"}


@pytest.mark.parametrize("ended", ["completed", "failed", "expired"])
async def test_what_has_ended_cannot_be_cancelled(stack: MakeStack, ended: str) -> None:
    it = await stack()
    it.script(mode="hang" if ended == "expired" else "ok")
    finished = await it.run(b"nope" if ended == "failed" else requests(1), window="1s")
    assert finished.batch.status == ended
    with pytest.raises(openai.ConflictError, match=f"Cannot cancel a batch with status '{ended}'") as caught:
        await it.openai.batches.cancel(finished.batch.id)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert await it.get(finished.batch.id) == finished.batch


async def test_cancelling_an_unknown_batch(stack: MakeStack) -> None:
    it = await stack(worker=False)
    with pytest.raises(openai.NotFoundError, match="No batch found"):
        await it.openai.batches.cancel("batch_unknown")


class Gate:
    """Holds the store's reading of a batch's input, or its writing of result files, until it is opened."""

    def __init__(self, it: Stack, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        real = getattr(it.store, held)

        def stream(key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
            if key.endswith("/input"):
                self.reached.set()
                while not self._open.wait(0.01):
                    yield b""
            yield from real(key, offset, length)

        def writer(key: str) -> Any:
            if key.endswith("/content"):
                self.reached.set()
                self._open.wait(60)
            return real(key)

        monkeypatch.setattr(it.store, held, stream if held == "stream" else writer)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 30)

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize("by", ["api", "temporal"])
async def test_cancelled_while_validating(stack: MakeStack, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    it = await stack()
    gate = Gate(it, monkeypatch, "stream")
    batch_id = await it.submit(requests(3))
    await gate.wait()
    if by == "api":
        assert (await it.openai.batches.cancel(batch_id)).status == "cancelling"
    else:
        await it.workflow(batch_id).cancel()
    finished = await it.finished(batch_id)
    gate.open()
    batch = finished.batch
    assert (batch.status, finished.counts) == ("cancelled", (0, 0, 0))
    assert (batch.output_file_id, batch.error_file_id, batch.in_progress_at) == (None, None, None)
    assert batch.cancelling_at
    assert batch.cancelled_at
    assert batch.errors is None
    assert it.engine.counters().received_total == 0


async def test_a_cancel_that_comes_too_late_for_validation_still_counts(
    stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = await stack()
    gate = Gate(it, monkeypatch, "stream")
    batch_id = await it.submit(requests(3))
    await gate.wait()
    await it.openai.batches.cancel(batch_id)
    gate.open()  # before the activity has heard of it
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("cancelled", (0, 0, 0))
    assert it.engine.counters().received_total == 0


async def test_cancelled_from_temporal_when_it_is_cancelling_already(
    stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = await stack()
    batch_id = await half_done(it)
    await it.openai.batches.cancel(batch_id)
    # The shards hear of it with a heartbeat, so there is time for this.
    await it.workflow(batch_id).cancel()
    check_partial(it, await it.finished(batch_id), "cancelled", "batch_cancelled")


@pytest.mark.parametrize("by", ["api", "temporal"])
async def test_cancelled_while_finalizing_it_keeps_its_answers(
    stack: MakeStack, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    it = await stack()
    file_id = await it.upload(requests(3))
    gate = Gate(it, monkeypatch, "writer")
    batch_id = (await it.create(file_id)).id
    await gate.wait()
    if by == "api":
        assert (await it.openai.batches.cancel(batch_id)).status == "cancelling"
        assert (await it.openai.batches.cancel(batch_id)).status == "cancelling"
    else:
        for _ in range(2):
            await it.workflow(batch_id).cancel()
        await it.until(batch_id, lambda batch: batch.status == "cancelling")
    gate.open()
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("cancelled", (3, 3, 0))
    assert finished.batch.cancelling_at
    assert finished.batch.cancelled_at
    assert await it.end_of_run(batch_id) == ("CANCELED", "")


async def test_cancelled_from_temporal(stack: MakeStack) -> None:
    it = await stack()
    batch_id = await half_done(it)
    await it.workflow(batch_id).cancel()
    finished = await it.finished(batch_id)
    check_partial(it, finished, "cancelled", "batch_cancelled")
    assert finished.batch.cancelling_at
    assert finished.batch.cancelled_at


async def test_cancelled_by_a_signal(stack: MakeStack) -> None:
    it = await stack()
    batch_id = await half_done(it)
    await it.workflow(batch_id).signal("cancel")
    check_partial(it, await it.finished(batch_id), "cancelled", "batch_cancelled")
    assert await it.end_of_run(batch_id) == ("CANCELED", "")


async def test_a_cancel_counts_though_its_api_was_killed(stack: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    it = await stack()
    batch_id = await half_done(it)

    async def killed(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(TemporalGateway, "_after_cancel", killed)  # Temporal has been asked by then
    with pytest.raises(asyncio.CancelledError):
        await TemporalGateway(it.temporal, it.store, it.settings.task_queue, "").cancel(BatchRef("default", batch_id))
    finished = await it.finished(batch_id)
    check_partial(it, finished, "cancelled", "batch_cancelled")
    assert finished.batch.cancelling_at


async def test_cancelled_before_a_worker_came(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(3))
    cancelled = await it.openai.batches.cancel(batch_id)
    assert cancelled.status == "cancelling"
    # Another API process knows as well, and when.
    others = it.another_api()
    assert (await others.batches.retrieve(batch_id)).cancelling_at == cancelled.cancelling_at
    assert [batch.status async for batch in others.batches.list()] == ["cancelling"]
    await it.start_worker()
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("cancelled", (0, 0, 0))
    assert finished.batch.cancelling_at
    assert await it.end_of_run(batch_id) == ("CANCELED", "")


async def test_a_cancel_that_is_acknowledged_counts_however_slow_the_disk(
    stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = await stack()
    real = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.05)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    file_id = await it.upload(requests(1))
    began = time.monotonic()
    await it.finished((await it.create(file_id)).id)
    whole = time.monotonic() - began

    async def cancel_after(seconds: float) -> str:
        batch_id = (await it.create(file_id)).id
        await asyncio.sleep(seconds)
        try:
            answered = (await it.openai.batches.cancel(batch_id)).status
        except openai.ConflictError:
            answered = "too late"
        batch = (await it.finished(batch_id)).batch
        assert batch.status == ("completed" if answered == "too late" else "cancelled"), (answered, seconds)
        assert bool(batch.cancelling_at) == bool(batch.cancelled_at) == (batch.status == "cancelled")
        return answered

    answers: list[str] = []
    for wave in range(2):
        moments = [whole * (0.4 + 0.7 * (10 * wave + number) / 20) for number in range(10)]
        answers += await asyncio.gather(*map(cancel_after, moments))
    assert "cancelling" in answers


async def test_terminated_by_an_operator(stack: MakeStack) -> None:
    it = await stack()
    batch_id = await half_done(it)
    await it.workflow(batch_id).terminate(reason="the disk was on fire")
    batch = await it.until(batch_id, lambda batch: batch.status != "in_progress")
    assert batch.status == "cancelling"
    assert batch.cancelling_at
    assert "the disk was on fire" in progress_of(batch)["waiting_reason"]
    assert [one.status async for one in it.openai.batches.list()] == ["cancelling"]
    assert it.catalog.get_final(BatchRef("default", batch_id)) is None  # who asks changes nothing
    assert (await it.openai.batches.cancel(batch_id)).status == "cancelling"
    assert (await it.run_janitor(batch_id)).closed == 1
    finished = await it.finished(batch_id)
    check_partial(it, finished, "cancelled", "batch_cancelled")
    assert finished.batch.in_progress_at
    assert finished.batch.model == "fake"
    assert await it.end_of_run(batch_id) == ("CANCELED", "")
    assert list(it.store.list(f"batches/default/{batch_id}/results/")) == []
    assert (await it.run_janitor(batch_id)).closed == 0


async def test_terminated_while_it_is_checked(stack: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    it = await stack()
    gate = Gate(it, monkeypatch, "stream")
    batch_id = await it.submit(requests(3))
    await gate.wait()
    await it.workflow(batch_id).terminate()
    gate.open()
    assert (await it.run_janitor(batch_id)).closed == 1
    finished = await it.finished(batch_id)
    assert finished.batch.status == "cancelled"
    assert it.engine.counters().received_total == 0


async def test_a_batch_that_temporal_has_lost_is_closed_with_its_answers(
    stack: MakeStack, empty_temporal: Client
) -> None:
    it = await stack()
    batch_id = await half_done(it)
    await it.stop_worker()
    async with Stack.open(empty_temporal, Path(it.settings.store), upstream_url=it.settings.upstream_url) as other:
        await other.start_worker()
        assert (await other.get(batch_id)).status == "in_progress"
        assert "does not know" in progress_of(await other.get(batch_id))["waiting_reason"]
        with pytest.raises(openai.InternalServerError):
            await other.openai.batches.cancel(batch_id)
        assert (await other.run_janitor(batch_id)).closed == 1
        finished = await other.finished(batch_id)
        assert (finished.batch.status, finished.counts) == ("cancelled", (20, 10, 10))
        assert finished.answered == [f"ok-{number}" for number in range(0, 20, 2)]


async def test_out_of_time(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="hangs")
    batch_id = await it.submit(
        [request(f"{'hangs' if number % 2 else 'ok'}-{number}") for number in range(20)], window="2s"
    )
    finished = await it.finished(batch_id)
    check_partial(it, finished, "expired", "batch_expired")
    batch = finished.batch
    assert batch.completion_window == "2s"
    assert batch.expires_at == batch.created_at + 2
    assert batch.expired_at
    assert batch.expired_at >= batch.created_at + 2
    assert batch.cancelling_at is None


async def test_out_of_time_while_it_waits_for_the_engine(stack: MakeStack) -> None:
    it = await stack()
    await it.engine.close()
    finished = await it.run(requests(600), window="2s")
    assert (finished.batch.status, finished.counts) == ("expired", (600, 0, 600))
    assert finished.batch.output_file_id is None
    assert set(finished.error_codes.values()) == {"batch_expired"}
    assert finished.refused == [f"r-{number}" for number in range(600)]


async def test_out_of_time_before_a_worker_came(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2), window="1s")
    batch = await it.until(
        batch_id, lambda batch: time.time() > (batch.expires_at or 0) + 1
    )  # it is told in whole seconds
    assert batch.status == "validating"
    await it.start_worker()
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("expired", (0, 0, 0))
    assert (finished.batch.output_file_id, finished.batch.error_file_id) == (None, None)
    assert it.engine.counters().received_total == 0
