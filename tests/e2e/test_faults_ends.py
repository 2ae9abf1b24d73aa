"""The fault matrix, part four: batches that are ended early, seen from the engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest
from temporalio.client import Client

from api.client import TERMINAL
from tests.e2e.conftest import MakeWorld, on_s3_too
from tests.e2e.engine_log import SECOND
from tests.e2e.faults import GROUPED, SINGLE, Size, World
from tests.e2e.faults_table import Row
from tests.e2e.processes import now
from tests.integration.stack import jsonl, request, requests, until

pytestmark = [pytest.mark.faults, pytest.mark.slow_faults]
both = pytest.mark.parametrize("size", [SINGLE, GROUPED], ids=str)


def missing(it: World, code: str) -> dict[str, str]:
    """Requests without an answer, by the engine's log."""
    return {line["custom_id"]: code for line in it.lines if line["custom_id"] not in it.log.read().answered}


async def until_all_hang(it: World, fraction: float = 0.3) -> None:
    """Submitted, and so much answered; what is in flight then, as much as may be, gets no answer any more."""
    await it.until_answered(fraction)
    await it.engine.control(mode="hang")

    async def look() -> bool:
        # What the engine had before it was told to hang is answered, and committed.
        quiet = now() - max(it.log.read().answered.values()) > (it.size.latency + 0.5) * SECOND
        return quiet and len(it.log.open_at(now())) >= it.size.in_flight

    await until(look, "as many in flight as may be, all of which hang", 30)


@on_s3_too
@pytest.mark.parametrize("how", ["api", "twice", "temporal"])
@both
async def test_cancelled_mid_run(world: MakeWorld, temporal: str, size: Size, how: str) -> None:
    it = await world(size)
    await it.submit()
    await until_all_hang(it)
    with it.fault():
        if how == "temporal":
            await (await Client.connect(temporal)).get_workflow_handle(it.batch_id).cancel()
        else:
            await it.client.batches.cancel(it.batch_id)
            if how == "twice":
                await it.client.batches.cancel(it.batch_id)
    await it.until_ended(30)

    async def all_dropped() -> bool:
        return it.log.read().count("abort") >= size.in_flight

    await until(all_dropped, "the engine has seen all connections closed", 10)
    last = it.log.last(lambda event: event.kind == "abort")
    latency = (last - it.since) / SECOND
    # What one shard leaves free is not taken by the next, which has not heard of the cancel yet.
    assert it.log.count("recv", since=it.log.first(lambda event: event.kind == "abort")) == 0
    assert not it.log.open_at(now())
    name = {"api": "mid-run", "twice": "mid-run, twice", "temporal": "mid-run, from Temporal"}[how]
    note = f"last engine connection closed after {latency:.1f} s"
    await it.end("Cancel", name, status="cancelled", errors=missing(it, "batch_cancelled"), note=note)
    assert latency <= 3


async def test_cancelled_while_validating_a_large_file(world: MakeWorld) -> None:
    it = await world(GROUPED)
    count = 20_000
    lines = jsonl(request(f"r-{number}", prompt="x" * 5000) for number in range(count))
    file = await it.client.files.create(file=("in.jsonl", lines), purpose="batch")
    await it.watch(await it.create(file.id))

    async def begun() -> bool:
        return any(it.store.glob("batches/*/*/input"))

    await until(begun, "the validation")
    since = now()
    assert (await it.client.batches.cancel(it.batch_id)).status in ("cancelling", "cancelled")
    await it.until_ended(30)
    seconds = (now() - since) / SECOND
    result = await it.finished()
    assert (result.batch.status, result.counts, result.raw_errors) == ("cancelled", (0, 0, 0), b"")
    assert result.batch.in_progress_at is None
    assert it.log.read().count("recv") == 0
    assert it.poller.wrong == []
    name, note = f"while validating {len(lines) >> 20} MiB", f"ended after {seconds:.1f} s"
    it.matrix.add(Row("Cancel", name, count, 0, 0, 0, None, (now() - it.started) / SECOND, note))


@pytest.mark.timeout(300)
async def test_cancelled_on_a_slow_disk(world: MakeWorld) -> None:
    """Each fsync takes 0.15 s, so that the end of a batch takes seconds. Whose cancel is acknowledged is cancelled."""
    it = await world(SINGLE, workers=0, engine={"latency": 0.3})
    slow_disk = str(Path(__file__).with_name("slow_disk"))
    it.launcher.env["PYTHONPATH"] = slow_disk
    await it.start_worker()
    await it.start_api()
    file_id = await it.upload(requests(3))
    started, acknowledged = now(), dict[str, str]()

    async def create_and_cancel(number: int) -> None:
        batch_id = await it.create(file_id)
        await asyncio.sleep(number % 10 * 0.3)  # from validation to the end
        try:
            await it.client.batches.cancel(batch_id)
        except openai.ConflictError:
            return  # it had ended
        acknowledged[batch_id] = ""

    number = 0
    while len(acknowledged) < 70 and number < 300:
        await asyncio.gather(*(create_and_cancel(number + more) for more in range(10)))
        number += 10

    async def all_ended() -> bool:
        for batch_id in acknowledged:
            acknowledged[batch_id] = (await it.client.batches.retrieve(batch_id)).status
        return TERMINAL.issuperset(acknowledged.values())

    await until(all_ended, "the end of all", 90)
    assert len(acknowledged) >= 70
    assert set(acknowledged.values()) == {"cancelled"}
    seconds = (now() - started) / SECOND
    note = f"{len(acknowledged)} of {number} batches"
    name = "fsync takes 0.15 s: each cancel that is acknowledged ends `cancelled`"
    it.matrix.add(Row("Cancel", name, 3, 0, 0, 0, None, seconds, note))


@both
async def test_cancelled_while_no_worker_is_up(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit()
    await until_all_hang(it)
    with it.fault():
        await it.worker.kill()
        assert (await it.client.batches.cancel(it.batch_id)).status == "cancelling"
    it.lift()
    await it.start_worker()
    await it.until_ended(30)
    # The new worker may begin shards before it comes to the cancel; then it drops them.
    later = [event for event in it.log.read().events if event.at > it.lifted]
    sent = sum(event.kind == "recv" for event in later)
    latency = (later[-1].at - later[0].at) / SECOND if later else 0
    assert not it.log.open_at(now())
    note = f"the next drops the {sent} requests that it had sent, after {latency:.1f} s"
    errors = missing(it, "batch_cancelled")
    await it.end("Cancel", "while no worker is up", status="cancelled", errors=errors, allowed=it.at_risk(), note=note)
    assert latency <= 3


@on_s3_too
@both
async def test_expired(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit(window="5s")
    await until_all_hang(it)
    await it.end("Expiry", "window of 5 s, mid-run", status="expired", errors=missing(it, "batch_expired"))
    assert not it.log.open_at(now())
    assert it.log.count("abort") >= size.in_flight


@both
async def test_expired_while_the_engine_is_down(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit(window="5s")
    await it.until_answered(0.1)
    await it.engine.stop()
    await it.end("Expiry", "window of 5 s, engine down", status="expired", errors=missing(it, "batch_expired"))
