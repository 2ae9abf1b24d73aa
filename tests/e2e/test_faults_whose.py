"""The fault matrix, part five: whose fault a failed answer is, told from what others get at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.e2e.conftest import MakeWorld
from tests.e2e.engine_log import SECOND
from tests.e2e.faults import SINGLE, Size, World
from tests.e2e.processes import now
from tests.integration.stack import request, requests, until

pytestmark = [pytest.mark.faults, pytest.mark.slow_faults]

STEADY = Size("steady", 1280, 0.5, 64)
"""So slow that neither the engine nor the machine that it shares with all the rest is ever the limit."""

OUTAGES: dict[str, dict[str, Any]] = {
    "500": {"mode": "status", "status": 500},
    "504": {"mode": "status", "status": 504},
    "404 text": {"mode": "page", "status": 404, "content_type": "text/plain"},
    "403 HTML": {"mode": "page", "status": 403},
    "200 HTML": {"mode": "page", "status": 200},
}


def refused(it: World) -> list[int]:
    """When the engine answered with something else than an answer."""
    return [event.at for event in it.log.read().events if event.kind == "sent" and event.status != 200]


@pytest.mark.parametrize("seconds", [3, 30, 120])
@pytest.mark.parametrize("name", OUTAGES)
@pytest.mark.timeout(300)
async def test_everybody_gets_it(world: MakeWorld, name: str, seconds: int) -> None:
    it = await world(STEADY)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault():
        await it.engine.control(**OUTAGES[name])
        it.struck()
        await asyncio.sleep(seconds)
        await it.engine.control()
    it.lift()
    await it.until_ended(60 + seconds)
    first = refused(it)[0]
    # Those in flight, and what had been taken in meanwhile; from then on one at a time asks, at pauses that grow.
    asked = it.log.count("recv", first + 2 * SECOND, it.lifted)
    note = f"{len(refused(it))} refusals, {asked} of them after the first 2 s"
    await it.end("Whose fault", f"{name} to everything for {seconds} s", note=note)
    assert asked <= 4 + seconds / 3
    full = it.log.full_rate_after(it.lifted, 0.8 * STEADY.rate, window=1.0)
    assert full is not None
    assert full <= 8


@pytest.mark.parametrize("size", [SINGLE, STEADY], ids=str)
@pytest.mark.parametrize("status", [401, 429, 502, 503])
@pytest.mark.timeout(240)
async def test_one_gets_it(world: MakeWorld, size: Size, status: int) -> None:
    """It becomes an error line within two minutes, and slows nobody else."""
    it = await world(size)
    await it.engine.control(mode="status", status=status, match="alone")
    lines = requests(size.count)
    lines[size.count // 2] = request("alone")
    await it.submit(lines)
    await it.until_ended(120)
    others = it.log.read().answered.values()
    sends = [event.at for event in it.log.events if event.kind == "recv" and event.custom_id == "alone"]
    early = sum(at < min(others) for at in sends)  # such a failure may be an outage, and need not count
    ideal = size.count / size.rate
    took = (max(others) - min(others)) / SECOND + size.latency
    note = f"sent {len(sends)} times; the others took {took:.1f} s, ideal {ideal:.1f} s"
    code = "invalid_request_error" if status < 500 else "server_error"
    await it.end("Whose fault", f"{status} to one request, always", errors={"alone": code}, note=note)
    assert 5 <= len(sends) <= 5 + early, [(at - it.log.events[0].at) / SECOND for at in sends]
    assert took <= 1.5 * ideal + 1


async def test_one_model_of_two_refuses(world: MakeWorld) -> None:
    it = await world(STEADY, engine={"model": ["b"]})
    count = STEADY.count
    names = [f"{'ab'[number % 2]}-{number}" for number in range(count)]
    with it.fault():
        await it.engine.control(mode="status", status=503, match="b-", retry_after=5)
        await it.submit([request(name, model="fake" if name.startswith("a") else "b") for name in names])

        async def healthy() -> bool:
            return len(it.log.read().answered) == count // 2

        await until(healthy, "all of the other model are answered", 30)
        seconds = (now() - it.started) / SECOND
        await asyncio.sleep(5)
        asked = sum(event.kind == "recv" and event.custom_id.startswith("b") for event in it.log.read().events)
        await it.engine.control()
    it.lift()
    ideal = count / 2 / STEADY.rate
    note = f"the other model's {count // 2} took {seconds:.1f} s, ideal {ideal:.1f} s; {asked} requests asked in vain"
    await it.end("Whose fault", "one model of two answers 503, `Retry-After: 5`", note=note)
    assert seconds <= 1.5 * ideal + 2
    assert asked <= 64 + 64


@pytest.mark.timeout(240)
async def test_one_slot(world: MakeWorld) -> None:
    """One request at a time, first come first served, and a timeout that only the first ten in a queue make."""
    size = Size("fifo", 300, 0.1, 64)
    it = await world(size, engine={"slots": 1}, request_timeout="1")
    await it.submit()
    await it.until_ended(150)
    dropped = it.log.read().sent_again()
    answers = sorted(it.log.answered.values())
    took = (answers[-1] - it.log.events[0].at) / SECOND
    ideal = size.count * size.latency
    note = f"{it.log.count('abort')} dropped in the queue, none failed; {took:.1f} s, ideal {ideal:.1f} s"
    await it.end("Whose fault", "one slot, first in first out, timeout 1 s", allowed=dropped, note=note)
    assert took <= 1.5 * ideal


@pytest.mark.parametrize("latency", [0.5, 4.0])
@pytest.mark.timeout(300)
async def test_a_drain(world: MakeWorld, latency: float) -> None:
    """The engine finishes what runs and refuses all that is new, for 25 s."""
    seconds, size = 25, Size("drain", 1280 if latency < 1 else 320, latency, 64)
    it = await world(size)
    await it.submit()
    await it.until_answered(0.2)
    with it.fault():
        await it.engine.control(mode="status", status=503)
        it.struck()
        await asyncio.sleep(seconds)
        await it.engine.control()
    it.lift()
    await it.until_ended(150)
    opened = [event for event in it.log.read().events if event.at > it.lifted and event.kind == "recv"]
    probe = opened[0].at
    full = next(
        (event.at for event in opened if len(it.log.open_at(event.at)) >= 0.9 * size.in_flight), it.log.events[-1].at
    )
    back = (full - probe) / SECOND / latency
    took = (it.log.events[-1].at - it.log.events[0].at) / SECOND
    ideal = size.count / size.rate + seconds
    note = f"{took:.0f} s, ideal {ideal:.0f} s; the limit is back {back:.1f} latencies after the first request"
    await it.end("Whose fault", f"a drain: 503 to all that is new for 25 s, answers of {latency:g} s", note=note)
    assert full - probe <= (3.5 * latency + 1) * SECOND
    assert took <= ideal + 4 + 3.5 * latency + 4
