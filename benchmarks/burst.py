"""A burst of large creates: when the first of their requests is answered, and a line of another tenant meanwhile."""

from __future__ import annotations

import asyncio
import sys
import time

from benchmarks.figures import report, write_input
from benchmarks.stack import Stack, run_stack

LATENCY = 0.1
LINES = 50_000
FIRST_SECONDS = 5.0
"""Target for the first answer of any of the batches."""


async def main(batches: int) -> None:
    async with run_stack(latency=LATENCY, tenants=("large", "small")) as stack:
        one = await stack.upload(write_input(stack.folder / "one.jsonl", 1, prefix="one"), "small")
        await stack.first_answer(one, "small")  # warms every process
        alone = await stack.first_answer(one, "small")
        large = await stack.upload(write_input(stack.folder / "large.jsonl", LINES), "large")
        start = time.perf_counter()
        first = asyncio.create_task(_first(stack))
        creates = [asyncio.create_task(stack.create(large, "large")) for _ in range(batches)]
        await asyncio.gather(*creates)
        created = time.perf_counter() - start
        beside = [await stack.first_answer(one, "small") for _ in range(5)]
        any_answer = await asyncio.wait_for(first, 200) - start
        beside += [await stack.first_answer(one, "small") for _ in range(5)]
        rate = await _rate(stack)
        memory = {name: usage.largest_mb for name, usage in stack.usage().items()}
        lost = stack.log("worker").count("Workflow task not found") + stack.log("worker").count("TMPRL1101")
    ratio = max(any_answer / FIRST_SECONDS, max(beside) / (1.5 * LATENCY + 1), float(lost))
    text = (
        f"{batches} × {LINES:,} lines created in {created:.1f} s: first answer after {any_answer:.1f} s, one line of "
        f"another tenant within {max(beside):.2f} s (alone {alone:.2f}), {rate:.0f} requests/s, {lost} workflow tasks "
        f"lost or stuck, peak memory in MB {memory}"
    )
    raw = {"first": any_answer, "beside": beside, "alone": alone, "lost": lost, "memory": memory, "rate": rate}
    report("burst", ratio, "≤ 1", text, **raw)


async def _first(stack: Stack) -> float:
    """When the engine has answered more than the lines of the other tenant."""
    while True:
        counters = await stack.engine.counters()
        if any(name.startswith("r-") for name in counters.answered):
            return time.perf_counter()
        await asyncio.sleep(0.1)


async def _rate(stack: Stack, seconds: float = 10.0) -> float:
    """Requests answered a second, of all batches together."""
    before = (await stack.engine.counters()).answered_total
    await asyncio.sleep(seconds)
    return ((await stack.engine.counters()).answered_total - before) / seconds


if __name__ == "__main__":
    asyncio.run(main(200 if "--large" in sys.argv else 20))
