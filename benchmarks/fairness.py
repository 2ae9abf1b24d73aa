"""P6: how long a small batch waits for its first answer beside other batches, of another tenant and of its own."""

from __future__ import annotations

import argparse
import asyncio
import statistics

from benchmarks.figures import report, write_input
from benchmarks.stack import Stack, run_stack

CASES = "abcde"
ALLOWED = "≤ 1 (of 1.5 × latency + 1 s)"


async def behind_a_large_one(case: str, latency: float, count: int) -> None:
    """(a), (b): five lines behind thousands."""
    owner = "small" if case == "b" else "large"
    async with run_stack(latency=latency, tenants=("large", "small")) as stack:
        five = await stack.upload(write_input(stack.folder / "five.jsonl", 5, prefix="five"), "small")
        await stack.first_answer(five, "small")
        large = await stack.create(await stack.upload(write_input(stack.folder / "large.jsonl", count), owner), owner)
        await _busy(stack, latency)
        seconds = [await stack.first_answer(five, "small") for _ in range(5 if latency < 1 else 3)]
        _still(await stack.clients[owner].batches.retrieve(large.id))
        whose = "one's own" if case == "b" else "another tenant"
        _report(case, latency, seconds, f"five lines behind {count:,} of {whose}")


async def beside_many(case: str, others: int, latency: float = 2.0) -> None:
    """(c), (d): a line beside many batches of ten."""
    owner = "small" if case == "d" else "large"
    async with run_stack(latency=latency, tenants=("large", "small")) as stack:
        one = await stack.upload(write_input(stack.folder / "one.jsonl", 1, prefix="one"), "small")
        await stack.first_answer(one, "small")
        ten = await stack.upload(write_input(stack.folder / "ten.jsonl", 10), owner)
        batches = [await stack.create(ten, owner) for _ in range(others)]
        await _busy(stack, latency)
        seconds = [await stack.first_answer(one, "small") for _ in range(3)]
        if others >= 50:
            _still(await stack.clients[owner].batches.retrieve(batches[-1].id))
        whose = "one's own" if case == "d" else "another tenant"
        _report(case, latency, seconds, f"one line beside {others} batches of ten of {whose}")


async def beside_hostile_inputs(latency: float = 0.1) -> None:
    """(e): a line beside forty validations of 100 MB of newlines."""
    async with run_stack(latency=latency, tenants=("large", "small")) as stack:
        one = await stack.upload(write_input(stack.folder / "one.jsonl", 1, prefix="one"), "small")
        await stack.first_answer(one, "small")
        (stack.folder / "blank.jsonl").write_bytes(b"\n" * 100_000_000)
        blank = await stack.upload(stack.folder / "blank.jsonl", "large")
        for _ in range(40):
            await stack.create(blank, "large")
        seconds = [await stack.first_answer(one, "small") for _ in range(5)]
        _report("e", latency, seconds, "one line beside forty validations of 100 MB of newlines")


async def _busy(stack: Stack, latency: float) -> None:
    """Wait until the engine is full, and then some."""
    while (await stack.engine.counters()).in_flight < 10:  # noqa: ASYNC110 - another process has it
        await asyncio.sleep(0.1)
    await asyncio.sleep(min(latency, 1.0))


def _still(batch: object) -> None:
    status = getattr(batch, "status", "")
    if status not in ("validating", "in_progress"):
        raise RuntimeError(f"what it should wait for is {status} already: the figure says nothing")


def _report(case: str, latency: float, seconds: list[float], what: str) -> None:
    worst, middle = max(seconds), statistics.median(seconds)
    text = f"{what}, engine of {latency} s: first answer after {middle:.2f} s (median), {worst:.2f} s (worst)"
    report(f"P6{case}", worst / (1.5 * latency + 1), ALLOWED, text, seconds=seconds, latency=latency)


async def main(cases: str, quick: bool) -> None:
    for case in cases:
        if case in "ab":
            for latency in (0.1,) if quick else (0.1, 2.0, 10.0):
                await behind_a_large_one(case, latency, 5000)
        elif case in "cd":
            for others in (1, 50) if quick else (1, 50, 200, 800):
                await beside_many(case, others)
        else:
            await beside_hostile_inputs()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="?", default=CASES, help="which, for example `ac`; all take some minutes")
    parser.add_argument("--quick", action="store_true", help="the fastest of each case")
    options = parser.parse_args()
    asyncio.run(main(options.cases, options.quick))
