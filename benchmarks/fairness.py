"""P6: a batch of five requests behind one of 50,000 that fills the worker, against the same five alone."""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.figures import quick, report, write_input
from benchmarks.stack import Stack, run_stack

POLL_SECONDS = 0.02


async def main(count: int, rounds: int, latency: float) -> None:
    async with run_stack(latency=latency) as stack:
        five = await stack.upload(write_input(stack.folder / "five.jsonl", 5, prefix="five"))
        await stack.run_file(five, POLL_SECONDS)  # the first batch warms every process
        alone = [await _seconds(stack, five) for _ in range(rounds)]
        backlog = await stack.create(await stack.upload(write_input(stack.folder / "backlog.jsonl", count)))
        await _busy(stack, backlog.id)
        behind = [await _seconds(stack, five) for _ in range(rounds)]
        left = await stack.client.batches.retrieve(backlog.id)
        if left.status != "in_progress":
            raise RuntimeError(f"the backlog is {left.status} already: the figure says nothing")
        await stack.client.batches.cancel(backlog.id)
        await stack.ended(backlog.id)
    ratio = statistics.median(behind) / statistics.median(alone)
    text = f"{1000 * statistics.median(behind):.0f} ms behind {count:,}, {1000 * statistics.median(alone):.0f} ms alone"
    raw = {"alone_seconds": alone, "behind_seconds": behind, "backlog": count, "latency": latency}
    report("P6", ratio, "≤ 3", f"{text} (median of {rounds})", **raw)


async def _seconds(stack: Stack, file_id: str) -> float:
    return (await stack.run_file(file_id, POLL_SECONDS)).seconds


async def _busy(stack: Stack, batch_id: str) -> None:
    """Wait until the backlog fills the worker and has been doing so for a while."""
    while True:
        batch = await stack.client.batches.retrieve(batch_id)
        if batch.request_counts and batch.request_counts.completed > 0:
            return
        if batch.status not in ("validating", "in_progress"):
            raise RuntimeError(f"the backlog is {batch.status}")
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    if quick():
        asyncio.run(main(5000, rounds=3, latency=0.2))
    else:
        asyncio.run(main(50_000, rounds=7, latency=0.1))
