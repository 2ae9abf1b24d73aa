"""P10: small and middle batches. 500 and 50 requests of 20 ms, at a fixed number in flight and at ``auto``.

The ideal is a sliding window that costs nothing: 64 in flight, from the start of the batch's workflow to its end. At
``auto`` the number in flight begins low in each worker, for each model: the first batch is where it has to grow.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from dataclasses import asdict
from typing import Literal

from benchmarks.cheap_engine import cheap_engine
from benchmarks.figures import quick, report, write_input
from benchmarks.stack import Run, run_stack

LATENCY = 0.02
IN_FLIGHT = 64
LIMITS = {500: 0.5, 50: 0.35}
"""Seconds that a batch of so many requests may take."""


async def main(rounds: int) -> None:
    settings: tuple[int | Literal["auto"], ...] = (IN_FLIGHT, "auto")
    for setting in settings:
        for count in LIMITS:
            await _measure(setting, count, rounds)


async def _measure(setting: int | Literal["auto"], count: int, rounds: int) -> None:
    async with (
        cheap_engine(LATENCY) as engine,
        run_stack(max_in_flight=setting, upstream_url=engine.url) as stack,
    ):
        # Warms the processes, with so few requests that the number in flight stays where it begins.
        await stack.run(write_input(stack.folder / "warm.jsonl", 8))
        source = write_input(stack.folder / "in.jsonl", count)
        runs = [await stack.run(source, poll=0.05) for _ in range(rounds)]
    seconds = statistics.median(run.seconds for run in runs)
    ideal = math.ceil(count / IN_FLIGHT) * LATENCY
    text = (
        f"{count} × 20 ms, {setting} in flight: {seconds:.3f} s (median of {rounds}; the first {runs[0].seconds:.3f}, "
        f"the best {min(run.seconds for run in runs):.3f}), {count / seconds:.0f}/s, ideal {ideal:.3f} s; CPU ms a "
        f"request: worker {_cpu(runs, 'worker'):.2f}, Temporal {_cpu(runs, 'temporal'):.2f}, "
        f"API {_cpu(runs, 'api'):.2f}"
    )
    target = f"{ideal / LIMITS[count]:.2f}: {LIMITS[count]} s"
    report(f"P10 {count}, {setting}", ideal / seconds, target, text, runs=[asdict(run) for run in runs], ideal=ideal)


def _cpu(runs: list[Run], process: str) -> float:
    return 1000 * sum(run.cpu[process] for run in runs) / sum(run.requests for run in runs)


if __name__ == "__main__":
    asyncio.run(main(2 if quick() else 11))
