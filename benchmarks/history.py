"""P5: history events and bytes at 50,000 requests, against a batch of 500, which has one activity for each."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from benchmarks.figures import quick, report, write_input
from benchmarks.stack import run_stack


async def main(count: int) -> None:
    async with run_stack() as stack:
        small = await stack.run(write_input(stack.folder / "small.jsonl", 500))
        large = await stack.run(write_input(stack.folder / "large.jsonl", count))
    text = (
        f"{count:,} requests: {large.events:,} events, {large.history_bytes / 1e6:.2f} MB; "
        f"500 requests: {small.events:,} events, {small.history_bytes / 1e6:.2f} MB"
    )
    raw = {"small": asdict(small), "large": asdict(large)}
    report("P5", large.events / small.events, "≤ 3,000 events, ≤ 1.5 MB", text, **raw)


if __name__ == "__main__":
    asyncio.run(main(5000 if quick() else 50_000))
