"""P2: heavy-tailed latencies. How long the batch takes against a bare sliding loop over the same file."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import asdict

from benchmarks.baseline import bare_loop
from benchmarks.figures import quick, report, write_input
from benchmarks.stack import run_stack
from tests.fakes.engine_script import request_latency

IN_FLIGHT = 64
MEAN, SIGMA = 0.1, 1.5


def ideal_makespan(count: int) -> float:
    """Seconds of a sliding window over the file that costs nothing itself."""
    lanes = [0.0] * IN_FLIGHT
    for number in range(count):
        heapq.heapreplace(lanes, lanes[0] + request_latency(f"r-{number:06d}".encode(), MEAN, SIGMA))
    return max(lanes)


async def main(count: int) -> None:
    async with run_stack(max_in_flight=IN_FLIGHT, latency=MEAN, lognormal=SIGMA) as stack:
        await stack.run(write_input(stack.folder / "warm.jsonl", 200, prefix="warm"))
        source = write_input(stack.folder / "in.jsonl", count)
        bare = await bare_loop(stack.engine.url, source, stack.folder / "out.jsonl", IN_FLIGHT)
        run = await stack.run(source)
    ideal = ideal_makespan(count)
    text = f"{count:,} requests: {run.seconds:.2f} s, bare loop {bare.seconds:.2f} s, ideal {ideal:.2f} s"
    raw = {"ideal_seconds": ideal, "bare_loop": asdict(bare), "everbatch": asdict(run)}
    report("P2", run.seconds / bare.seconds, "≤ 1.03", text, **raw)


if __name__ == "__main__":
    asyncio.run(main(1000 if quick() else 10_000))
