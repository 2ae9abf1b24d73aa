"""Rate and time left as a running batch shows them, against what came: grouped and single, steady and heavy-tailed.

An error of the time left is relative to what is really left, or to a tenth of the whole where that is more: of the last
requests of a heavy-tailed engine nobody can know when they come. An error of the rate is relative to that at which the
first nine tenths were done, as the last few may come one by one.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import chain
from typing import NamedTuple

from api.cli.display import progress_of
from benchmarks.figures import quick, report, write_input
from benchmarks.stack import Stack, run_stack

POLL_SECONDS = 0.3
ROUNDED_SECONDS = 0.5
"""The time left is shown in whole seconds."""


class Case(NamedTuple):
    name: str
    requests: int
    latency: float
    sigma: float
    in_flight: int
    batches: int = 1


CASES = (
    Case("grouped, steady", 3000, 0.5, 0.0, 64),
    Case("grouped, lognormal", 3000, 0.5, 1.0, 64),
    Case("single, steady", 50, 2.0, 0.0, 5, 3),
    Case("single, lognormal", 50, 2.0, 1.0, 5, 3),
)


class Look(NamedTuple):
    at: float
    has_begun: bool
    """To send requests."""
    done: int
    rate: float | None
    eta: float | None


async def looks_at(stack: Stack, case: Case) -> list[Look]:
    """What was shown of a batch, until all its requests were done."""
    batch = await stack.create(await stack.upload(write_input(stack.folder / "in.jsonl", case.requests)))
    looks: list[Look] = []
    while True:
        batch = await stack.client.batches.retrieve(batch.id)
        counts, progress = batch.request_counts, progress_of(batch)
        done = counts.completed + counts.failed if counts else 0
        rate, eta = progress.get("requests_per_second"), progress.get("eta_seconds")
        looks.append(Look(time.monotonic(), batch.in_progress_at is not None, done, rate, eta))
        if done == case.requests or batch.completed_at:
            return looks
        await asyncio.sleep(POLL_SECONDS)


def errors(case: Case, looks: list[Look]) -> tuple[list[float], list[float]]:
    """Of the time left and of the rate, from a tenth of the work on; prints some of them."""
    begun = max((look.at for look in looks if not look.has_begun), default=looks[0].at)
    end, whole = looks[-1].at, looks[-1].at - begun
    maximum = next(look for look in looks if look.done >= 0.9 * case.requests)
    rate = maximum.done / (maximum.at - begun)
    of_eta: list[float] = []
    of_rate: list[float] = []
    shown = 1
    for look in looks[:-1]:
        if look.done < case.requests / 10:
            continue
        left = end - look.at
        # What is not shown counts as nothing left, and as no rate.
        of_eta.append(max(0.0, abs((look.eta or 0) - left) - ROUNDED_SECONDS) / max(left, whole / 10))
        of_rate.append(abs((look.rate or 0) / rate - 1))
        if 10 * look.done >= shown * case.requests:
            shown = 10 * look.done // case.requests + 1
            print(f"  {look.done:5} done: {look.rate}/s, {look.eta} s left, really {left:.1f} s ({of_eta[-1]:.0%} off)")
    return of_eta, of_rate


async def main(share: float) -> None:
    worst, texts = 0.0, list[str]()
    for case in CASES:
        case = case._replace(latency=case.latency * share)
        async with run_stack(max_in_flight=case.in_flight, latency=case.latency, lognormal=case.sigma) as stack:
            found = [errors(case, await looks_at(stack, case)) for _ in range(case.batches)]
        of_eta, of_rate = (list(chain.from_iterable(some)) for some in zip(*found, strict=True))
        texts.append(
            f"{case.name}: time left {statistics.median(of_eta):.0%}, worst {max(of_eta):.0%}; "
            f"rate {statistics.median(of_rate):.0%}, worst {max(of_rate):.0%}"
        )
        print(texts[-1], flush=True)
        worst = max(worst, statistics.median(of_eta))
    report("ETA", worst, "≤ 0.2, the largest median", "; ".join(texts))


if __name__ == "__main__":
    asyncio.run(main(0.2 if quick() else 1.0))
