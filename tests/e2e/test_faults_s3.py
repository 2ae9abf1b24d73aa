"""The fault matrix, part four: the store is on S3, and its server fails."""

from __future__ import annotations

import asyncio
import signal

import openai
import pytest

from tests.e2e.conftest import MakeWorld
from tests.e2e.engine_log import SECOND
from tests.e2e.faults import GROUPED, SINGLE, Size, World
from tests.e2e.processes import now

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow_faults,
    pytest.mark.parametrize("world", ["s3"], indirect=True),
]
both = pytest.mark.parametrize("size", [SINGLE, GROUPED], ids=str)


async def received(it: World, seconds: float) -> int:
    """Requests that the engine gets from now on in so many seconds."""
    before = it.log.read().count("recv")
    await asyncio.sleep(seconds)
    return it.log.read().count("recv") - before


@pytest.mark.parametrize("seconds", [5, 30])
@both
@pytest.mark.timeout(180)
async def test_the_server_is_killed(world: MakeWorld, size: Size, seconds: int) -> None:
    it = await world(size)
    assert it.s3
    await it.submit()
    await it.until_answered(0.3)
    with it.fault("store"):
        it.s3.kill()
        it.struck()
        with pytest.raises(openai.InternalServerError) as caught:
            await it.client.files.create(file=("more.jsonl", b"{}\n"), purpose="batch")
        assert caught.value.status_code == 503
        await asyncio.sleep(1)  # what was on its way ends
        assert await received(it, 1) == 0  # nothing more is sent than can be stored
        await asyncio.sleep(max(0, seconds - (now() - it.since) / SECOND))
        it.s3.start()
    it.lift()
    assert it.poller.answers["503"]
    await it.end("Store", f"`kill -9` of the server, away for {seconds} s", seconds=90)


@both
async def test_the_server_hangs(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    assert it.s3
    await it.submit()
    await it.until_answered(0.3)
    with it.fault("store"):
        it.s3.signal(signal.SIGSTOP)
        it.struck()
        await asyncio.sleep(15)  # beyond the heartbeat timeout
        it.s3.signal(signal.SIGCONT)
    it.lift()
    await it.end("Store", "the server hangs for 15 s")


@both
async def test_the_server_starts_late(world: MakeWorld, size: Size) -> None:
    """A worker and an API that start while the store is away live, say so, and go on when it is there."""
    it = await world(size)
    assert it.s3
    await it.submit()
    await it.until_answered(0.3)
    with it.fault("store"):
        await it.worker.kill()
        it.s3.kill()
        it.struck()
        worker = await it.start_worker()
        await asyncio.sleep(2)
        assert worker.running
        it.s3.start()
    it.lift()
    await it.end("Store", "`kill -9` of server and worker, the worker is back first", allowed=it.at_risk())
    assert "waiting for the file store: the store failed at start: no connection" in worker.stderr
    assert "the file store is available" in worker.stderr
