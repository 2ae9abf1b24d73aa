"""P4: peak memory of each process after 50,000 requests of 4 KB, against a batch a tenth of that before it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from benchmarks.figures import quick, report, write_input
from benchmarks.stack import run_stack

BODY_BYTES = 4100


async def main(count: int) -> None:
    async with run_stack() as stack:
        small = await stack.run(write_input(stack.folder / "small.jsonl", count // 10, BODY_BYTES))
        before = stack.usage()
        source = write_input(stack.folder / "large.jsonl", count, BODY_BYTES)
        large = await stack.run(source)
        after = stack.usage()
        megabytes = source.stat().st_size / 1e6
    peaks = {name: usage.peak_rss_mb for name, usage in after.items()}
    small_peaks = {name: usage.peak_rss_mb for name, usage in before.items()}
    growth = max(after[name].peak_rss_mb / before[name].peak_rss_mb for name in after)
    listed = ", ".join(f"{name} {peak:.0f} MB (was {small_peaks[name]:.0f})" for name, peak in peaks.items())
    text = f"{count:,} requests, {megabytes:.0f} MB: {listed}; the ratio is the largest growth"
    raw = {"peaks_mb": peaks, "small_peaks_mb": small_peaks, "small": asdict(small), "large": asdict(large)}
    report("P4", growth, "each ≤ 250 MB, ratio about 1", text, **raw)


if __name__ == "__main__":
    asyncio.run(main(5000 if quick() else 50_000))
