"""P11: as work grows. One large batch against one of a tenth, and many batches that are open at once against one.

.venv/bin/python -m benchmarks.growth --requests 1000000 --bytes 4000 --batches 1000

The engine costs next to nothing, so the rates are Everbatch's own.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import statistics
import time
from dataclasses import asdict

from benchmarks.cheap_engine import CheapEngine, cheap_engine
from benchmarks.figures import report, write_input
from benchmarks.stack import Stack, run_stack

IN_FLIGHT = 64
OF_A_BATCH = 100
LOOKS = 8
"""Batches that are looked at, one after the other, while all run."""
NO_LIMITS = {"EVERBATCH_MAX_REQUESTS": str(10**9)} | {
    f"EVERBATCH_MAX_{what}_BYTES": str(1 << 40) for what in ("INPUT", "FILE", "UPLOAD")
}


async def one_large(requests: int, body_bytes: int) -> None:
    async with (
        cheap_engine() as engine,
        run_stack(max_in_flight=IN_FLIGHT, upstream_url=engine.url, variables=NO_LIMITS) as stack,
    ):
        await stack.run(write_input(stack.folder / "warm.jsonl", 6_000, body_bytes))
        small = await stack.run(write_input(stack.folder / "small.jsonl", requests // 10, body_bytes), poll=1)
        before = stack.usage()
        source = write_input(stack.folder / "large.jsonl", requests, body_bytes)
        large = await stack.run(source, poll=1)
        after = stack.usage()
        gigabytes = source.stat().st_size / 1e9
    listed = ", ".join(f"{name} {after[name].largest_mb:.0f} ({before[name].largest_mb:.0f})" for name in after)
    text = (
        f"{requests:,} requests, {gigabytes:.2f} GB: {large.per_second:.0f}/s, a tenth of them "
        f"{small.per_second:.0f}/s; worker {1000 * large.cpu['worker'] / requests:.3f} ms of CPU each "
        f"({1000 * small.cpu['worker'] / small.requests:.3f}); {large.events} events; peak memory in MB after both "
        f"(after the tenth): {listed}"
    )
    raw = {
        "small": asdict(small),
        "large": asdict(large),
        "usage": {name: asdict(usage) for name, usage in after.items()},
        "usage_before": {name: asdict(usage) for name, usage in before.items()},
    }
    report("P11 large", large.per_second / small.per_second, "about 1, each ≤ 250 MB", text, **raw)


async def many_open(batches: int, latency: float) -> None:
    async with (
        cheap_engine(latency) as engine,
        run_stack(max_in_flight=IN_FLIGHT, upstream_url=engine.url, variables=NO_LIMITS) as stack,
    ):
        total = batches * OF_A_BATCH
        await stack.run(write_input(stack.folder / "warm.jsonl", 1_000))
        one = await stack.run(write_input(stack.folder / "one.jsonl", total), poll=1)
        prefixes = [f"b{number}" for number in range(batches)]
        files = [
            await stack.upload(write_input(stack.folder / f"{prefix}.jsonl", OF_A_BATCH, prefix=prefix))
            for prefix in prefixes
        ]
        before, start = stack.usage(), time.perf_counter()
        ids: list[str] = []
        looking = asyncio.create_task(_look(stack, engine, ids))
        for file_id in files:
            ids.append((await stack.create(file_id)).id)
        created = time.perf_counter() - start
        for batch_id in ids:
            batch = await stack.ended(batch_id, poll=0.5)
            if not batch.request_counts or batch.request_counts.completed != OF_A_BATCH:
                raise RuntimeError(f"a batch did not go well: {batch.model_dump_json()}")
        seconds = time.perf_counter() - start
        looking.cancel()
        ages = await looking
        after = stack.usage()
    cpu = {name: 1000 * (after[name].cpu_seconds - before[name].cpu_seconds) / total for name in after}
    text = (
        f"{batches:,} batches of {OF_A_BATCH}, engine of {latency:g} s: {seconds:.1f} s until the last has ended "
        f"(created within {created:.1f} s), one batch of {total:,} {one.seconds:.1f} s; a status is "
        f"{statistics.median(ages):.2f} s old (median of {len(ages):,}), worst {max(ages):.2f} s; CPU ms a request: "
        + ", ".join(f"{name} {ms:.2f} ({1000 * one.cpu[name] / total:.2f})" for name, ms in cpu.items())
    )
    memory = {name: usage.largest_mb for name, usage in after.items()}
    raw = {"one": asdict(one), "seconds": seconds, "created": created, "cpu": cpu, "memory": memory}
    report(f"P11 many, {latency:g} s", seconds / one.seconds, "≤ 1.1, status ≤ 1 s old", text, **raw)


async def _look(stack: Stack, engine: CheapEngine, ids: list[str]) -> list[float]:
    """Look at batches until cancelled. Returns how many seconds old each status was: since when the engine had answered
    more than it showed.
    """
    looks: list[tuple[float, int, int]] = []
    try:
        while True:
            for place in range(0, len(ids), max(1, len(ids) // LOOKS)):
                asked = time.monotonic()
                batch = await stack.client.batches.retrieve(ids[place])
                if batch.status == "in_progress" and batch.request_counts:
                    looks.append((asked, place, batch.request_counts.completed))
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        answered = await engine.answered()
    ages: list[float] = []
    for asked, place, shown in looks:
        times = answered.get(f"b{place}", [])
        has_more = bisect.bisect_left(times, asked) > shown
        ages.append(asked - times[shown] if has_more else 0.0)
    return ages or [0.0]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="of the large batch; 0 leaves it out")
    parser.add_argument("--bytes", type=int, default=480, help="of each of its requests")
    parser.add_argument("--batches", type=int, default=200, help="open at once; 0 leaves them out")
    parser.add_argument("--latency", type=float, default=0.1, help="of the engine in front of these, in seconds")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work; figures mean little")
    args = parser.parse_args()
    scale = 10 if args.quick else 1
    if args.requests:
        await one_large(args.requests // scale, args.bytes)
    if args.batches:
        await many_open(args.batches // scale, args.latency)


if __name__ == "__main__":
    asyncio.run(main())
