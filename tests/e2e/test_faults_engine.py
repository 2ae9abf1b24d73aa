"""The fault matrix, part two: the inference engine."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import Any

import pytest

from tests.e2e.conftest import MakeWorld
from tests.e2e.engine_log import SECOND
from tests.e2e.faults import GROUPED, SINGLE, Size, World, signalled
from tests.e2e.processes import now
from tests.fakes.engine_script import uniform
from tests.integration.stack import request, requests, until

pytestmark = pytest.mark.faults
slow = pytest.mark.slow_faults
both = pytest.mark.parametrize("size", [SINGLE, GROUPED], ids=str)


async def until_reported(it: World, *words: str) -> None:
    """Wait until the batch says why it waits."""

    async def look() -> bool:
        reason = it.poller.progress.get("waiting_reason") or ""
        return all(word in reason for word in words)

    try:
        await until(look, "a reason", 15)
    except AssertionError:
        raise AssertionError(f"it says {it.poller.latest}") from None


@slow
@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.timeout(180))])
@both
async def test_engine_is_down(world: MakeWorld, size: Size, seconds: int) -> None:
    it = await world(size)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault():
        await it.engine.stop()
        it.struck()
        await until_reported(it, "refuses connections")
        await asyncio.sleep(max(0, seconds - (now() - it.since) / SECOND))
        await it.engine.start()
    it.lift()
    await it.end("Engine", f"down for {seconds} s", allowed=it.at_risk(), seconds=60 + seconds)
    full = it.log.full_rate_after(it.lifted, 0.5 * it.log.rate(it.log.events[0].at, it.since))
    assert full is not None
    assert full <= 6


@slow
@both
async def test_503_with_retry_after(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault():
        await it.engine.control(mode="status", status=503, retry_after=20)
        refused = await first_refusal(it, 503)
        await asyncio.sleep(3)
        await it.engine.control()
    it.lift()
    await until_reported(it, "HTTP 503")
    assert 0 < it.poller.progress["next_attempt_at"] - it.poller.latest["created_at"] < 60
    await it.end("Engine", "503 with `Retry-After: 20`")
    # What is in flight may still be answered, and one refusal may be its request's own fault; then nothing is sent.
    asked = it.log.count("recv", refused + int((size.latency + 1) * SECOND), refused + 19 * SECOND)
    assert asked == 0
    assert it.log.count("recv", refused + 19 * SECOND, refused + 24 * SECOND)


async def first_refusal(it: World, status: int) -> int:
    async def look() -> bool:
        return any(event.status == status for event in it.log.read().events)

    await until(look, f"an answer {status}")
    return it.log.first(lambda event: event.status == status)


@slow
async def test_429_storm(world: MakeWorld) -> None:
    """The engine takes fewer at once than the worker may send; so slow that the machine is not the limit."""
    admitted, latency = 96, 0.8
    it = await world(Size("storm", 2400, latency, 128), workers=0, engine={"max_concurrent": admitted})
    await it.start_worker(128)
    await it.submit()
    await it.until_answered(1)
    answers = sorted(it.log.answered.values())
    refused = sum(event.status == 429 for event in it.log.events)
    # Without the first shards, in which it learns the limit, and the last, which is too few to keep an engine busy.
    rate = it.log.rate(answers[500], answers[2100]) / (admitted / latency)
    whole = len(answers) / ((answers[-1] - it.log.events[0].at) / SECOND) / (admitted / latency)
    note = f"{rate:.0%} of what it admits, {whole:.0%} with the start and the end; {refused} times 429"
    await it.end("Engine", f"429 storm: takes {admitted} at once of 128", note=note)
    assert refused
    assert rate >= 0.9, note


def struck(it: World, fraction: float) -> Counter[str]:
    """How often in a row a script with this fraction strikes each request."""

    def strikes(name: str) -> int:
        nth = 1
        while uniform(name.encode(), b"%d" % nth) < fraction:
            nth += 1
        return nth - 1

    return +Counter({line["custom_id"]: strikes(line["custom_id"]) for line in it.lines})


@slow
@both
@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ({"mode": "status", "status": 500}, "5 % random 500"),
        ({"mode": "reset"}, "5 % connection reset mid-answer"),
        ({"mode": "hang"}, "5 % hang, timeout 4 s"),
        ({"mode": "not_json"}, "5 % answers that are not JSON"),
    ],
    ids=["500", "reset", "hang", "not_json"],
)
async def test_some_answers_are_bad(world: MakeWorld, size: Size, script: dict[str, Any], fault: str) -> None:
    it = await world(size, request_timeout="4")
    await it.engine.control(**script, fraction=0.05)
    await it.submit()
    strikes, errors = struck(it, 0.05), dict[str, str]()
    if script["mode"] == "not_json":  # which the engine's log takes for an answer, and of which two are enough
        errors = {name: "server_error" for name, times in strikes.items() if times >= 2}
        strikes = Counter(strikes.keys())
    elif script["mode"] != "hang":  # a request that hangs is given up and sent again
        strikes.clear()
    await it.end("Engine", fault, allowed=strikes, errors=errors, seconds=100)


@slow
@both
async def test_a_poison_request(world: MakeWorld, size: Size) -> None:
    it = await world(size, max_attempts="3")
    await it.engine.control(mode="status", status=500, match="poison")
    lines = requests(size.count)
    lines[size.count // 2] = request("poison")
    await it.submit(lines)
    await it.end("Engine", "one request always fails with 500", errors={"poison": "server_error"}, note="an error line")
    assert sum(event.kind == "recv" and event.custom_id == "poison" for event in it.log.events) == 3


@slow
@both
async def test_a_slow_start(world: MakeWorld, size: Size) -> None:
    """Not there, then there but loading its model, then slow, then up to speed."""
    it = await world(size, engine_runs=False)
    with it.fault():
        await it.submit()
        await until_reported(it, "refuses connections")
        await it.engine.start()
        await it.engine.control(mode="status", status=503, latency=1.0)
        await until_reported(it, "HTTP 503")
        await it.engine.control()
        it.lift()
        await it.until_answered(0.01)
        await it.engine.control(latency=size.latency)
    await it.end("Engine", "slow start: refused, 503, slow")


@slow
@both
async def test_a_wrong_key(world: MakeWorld, size: Size) -> None:
    it = await world(size, workers=0, engine={"api_key": "right"})
    wrong = await it.start_worker(EVERBATCH_UPSTREAM_API_KEY="wrong")
    with it.fault():
        await it.submit()
        await until_reported(it, "HTTP 401")
        await signalled(wrong, signal.SIGTERM)
    it.lift()
    await it.start_worker(EVERBATCH_UPSTREAM_API_KEY="right")
    await it.end("Engine", "wrong API key, then a worker with the right one", note="waits, says HTTP 401")
