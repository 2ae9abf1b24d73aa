"""P3: one request on an engine without latency, from create to completed.

Completion is noticed by asking for the batch every 5 ms, so that is the resolution, and the asking costs a little.
The baseline is the same request sent to the engine by the same client.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from openai import AsyncOpenAI

from benchmarks.figures import quick, report, write_input
from benchmarks.stack import run_stack

POLL_SECONDS = 0.005
TARGET_MS = 200


async def main(rounds: int) -> None:
    async with run_stack() as stack:
        file_id = await stack.upload(write_input(stack.folder / "in.jsonl", 1))
        await stack.run_file(file_id, POLL_SECONDS)  # the first batch warms every process
        runs = [await stack.run_file(file_id, POLL_SECONDS) for _ in range(rounds)]
        async with AsyncOpenAI(base_url=stack.engine.url, api_key="none", max_retries=0) as client:
            direct = [await _direct(client) for _ in range(rounds)]
    seen = [1000 * run.seen_seconds for run in runs]
    workflow = [1000 * run.seconds for run in runs]
    median = statistics.median(seen)
    text = (
        f"median {median:.0f} ms of {rounds}, worst {max(seen):.0f} ms; of which the workflow "
        f"{statistics.median(workflow):.0f} ms; the request itself {statistics.median(direct):.1f} ms"
    )
    raw = {"seen_ms": seen, "workflow_ms": workflow, "direct_ms": direct, "poll_ms": 1000 * POLL_SECONDS}
    report("P3", median / TARGET_MS, "≤ 1 of 200 ms", text, **raw)


async def _direct(client: AsyncOpenAI) -> float:
    start = time.perf_counter()
    await client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}], user="direct")
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    asyncio.run(main(5 if quick() else 20))
