"""P4: peak memory of each process after 50,000 requests of 4 KB, against a batch a tenth of that before it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from benchmarks.figures import quick, report, write_input
from benchmarks.stack import run_stack

BODY_BYTES = 4000


async def main(count: int) -> None:
    async with run_stack() as stack:
        # No less than 1,000: up to 500 requests a batch has an activity for each, which is another shape.
        small_count = max(1000, count // 10)
        small = await stack.run(write_input(stack.folder / "small.jsonl", small_count, BODY_BYTES))
        before = stack.usage()
        source = write_input(stack.folder / "large.jsonl", count, BODY_BYTES)
        large = await stack.run(source)
        after = stack.usage()
        megabytes = source.stat().st_size / 1e6
    growth = max(after[name].largest_mb / before[name].largest_mb for name in after)
    listed = ", ".join(
        f"{name} {usage.largest_mb:.0f} MB (before {before[name].largest_mb:.0f}, with its children "
        f"{usage.peak_rss_mb:.0f})"
        for name, usage in after.items()
    )
    text = f"{count:,} requests, {megabytes:.0f} MB: {listed}; the ratio is the largest growth"
    raw = {
        "usage": {name: asdict(usage) for name, usage in after.items()},
        "usage_before": {name: asdict(usage) for name, usage in before.items()},
        "small": asdict(small),
        "large": asdict(large),
    }
    report("P4", growth, "each ≤ 250 MB, ratio about 1", text, **raw)


if __name__ == "__main__":
    asyncio.run(main(5000 if quick() else 50_000))
