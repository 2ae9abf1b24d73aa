"""P1, P1b, P1c: requests per second against the bare loop, worker CPU per request, and against the ideal."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from benchmarks.baseline import LoopRun, bare_loop
from benchmarks.figures import quick, report, write_input
from benchmarks.stack import Run, Stack, run_stack

IN_FLIGHT = 64


async def main(scale: int) -> None:
    async with run_stack(max_in_flight=IN_FLIGHT) as stack:
        await stack.run(write_input(stack.folder / "warm.jsonl", 200))

        bare, run = await _both(stack, 5000 // scale, 0.1)
        text = f"{run.requests:,} × 100 ms: {run.per_second:.0f}/s, bare loop {bare.per_second:.0f}/s"
        report("P1", run.per_second / bare.per_second, "≥ 0.97", text, **_raw(bare, run))

        bare, run = await _both(stack, 20_000 // scale, 0.0)
        cpu = 1000 * run.cpu["worker"] / run.requests
        text = f"{run.requests:,} × 0 ms: {run.per_second:.0f}/s, bare loop {bare.per_second:.0f}/s; "
        text += f"worker CPU {cpu:.3f} ms each"
        report("P1b", run.per_second / bare.per_second, "≥ 1.3, ≤ 0.25 ms", text, worker_ms=cpu, **_raw(bare, run))

        bare, run = await _both(stack, 5000 // scale, 0.02)
        ideal = IN_FLIGHT / 0.02
        text = (
            f"{run.requests:,} × 20 ms: {run.per_second:.0f}/s, ideal {ideal:.0f}/s, bare loop {bare.per_second:.0f}/s"
        )
        report("P1c", run.per_second / ideal, "≥ 0.8", text, ideal=ideal, **_raw(bare, run))


async def _both(stack: Stack, count: int, latency: float) -> tuple[LoopRun, Run]:
    await stack.engine.control(latency=latency)
    source = write_input(stack.folder / f"in-{count}-{latency}.jsonl", count)
    bare = await bare_loop(stack.engine.url, source, stack.folder / f"out-{count}-{latency}.jsonl", IN_FLIGHT)
    return bare, await stack.run(source)


def _raw(bare: LoopRun, run: Run) -> dict[str, object]:
    return {"bare_loop": asdict(bare), "everbatch": asdict(run)}


if __name__ == "__main__":
    asyncio.run(main(scale=5 if quick() else 1))  # no less: up to 500 requests a batch has an activity for each
