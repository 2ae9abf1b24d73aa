"""P6: how long a small batch waits for its first answer beside other batches, of another tenant and of its own."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence

from openai.types import Batch

from benchmarks.figures import report, write_input
from benchmarks.stack import Stack, run_stack

CASES = "abcdef"
SHARE = "0.8 to 1.2 (of the other tenant's answers)"
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


async def shares(batches: int, latency: float, seconds: float = 15.0) -> None:
    """(f): a tenant with one batch gets as much of the engine as one with many."""
    async with run_stack(latency=latency, tenants=("large", "small")) as stack:
        many = await stack.upload(write_input(stack.folder / "many.jsonl", max(500, 50_000 // batches)), "large")
        one = await stack.upload(write_input(stack.folder / "one.jsonl", 50_000, prefix="one"), "small")
        of = {"large": [await stack.create(many, "large") for _ in range(batches)]}
        of["small"] = [await stack.create(one, "small")]
        before, begun = await _answered(stack, of), time.perf_counter()
        while min(before.values()) == 0 or time.perf_counter() - begun < 5:
            await asyncio.sleep(0.5)
            before = await _answered(stack, of)
        await asyncio.sleep(seconds)
        after = await _answered(stack, of)
    got = {tenant: after[tenant] - before[tenant] for tenant in of}
    text = f"one batch against {batches} of another tenant, engine of {latency} s: "
    text += f"{got['small']:,} and {got['large']:,} answers in {seconds:.0f} s"
    report("P6f", got["small"] / got["large"], SHARE, text, answers=got, latency=latency)


async def _answered(stack: Stack, of: Mapping[str, Sequence[Batch]]) -> dict[str, int]:
    """Committed answers of each tenant's batches, some of which run."""
    found = dict.fromkeys(of, 0)
    for tenant, batches in of.items():
        shown = [await stack.clients[tenant].batches.retrieve(batch.id) for batch in batches]
        if not any(batch.status in ("validating", "in_progress") for batch in shown):
            raise RuntimeError(f"the batches of {tenant} are over ({shown[-1].status}): the figure says nothing")
        found[tenant] = sum(batch.request_counts.completed for batch in shown if batch.request_counts)
    return found


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
        elif case == "e":
            await beside_hostile_inputs()
        else:
            for batches, latency in ((20, 0.5),) if quick else ((20, 0.1), (20, 0.5), (200, 0.5), (20, 2.0)):
                await shares(batches, latency)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="?", default=CASES, help="which, for example `ac`; all take some minutes")
    parser.add_argument("--quick", action="store_true", help="the fastest of each case")
    options = parser.parse_args()
    asyncio.run(main(options.cases, options.quick))
