"""P8: a hundred clients that poll one running batch, against one client in the same run.

The engine answers slowly, so that the CPU which is measured is that of the polls. The plain route is ``/health``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx2

from benchmarks.figures import quick, report, write_input
from benchmarks.stack import Stack, run_stack

POLLERS = 100
TARGET_MS = 1.0


async def main(seconds: float) -> None:
    async with run_stack(latency=1000.0) as stack:
        file_id = await stack.upload(write_input(stack.folder / "in.jsonl", 2_000))
        batch = await stack.create(file_id)
        status = batch.status
        while status != "in_progress":
            await asyncio.sleep(0.1)
            status = (await stack.client.batches.retrieve(batch.id)).status
        base = str(stack.client.base_url).rstrip("/")
        limits = httpx2.Limits(max_connections=POLLERS)
        async with httpx2.AsyncClient(trust_env=False, timeout=60, limits=limits) as http:

            def get(url: str) -> Callable[[], Awaitable[object]]:
                return lambda: http.get(url)

            poll, plain = get(f"{base}/batches/{batch.id}"), get(base.removesuffix("/v1") + "/health")
            idle = await _measured(stack, None, 0, seconds)
            one = await _measured(stack, poll, 1, seconds)
            many = await _measured(stack, poll, POLLERS, seconds)
            health = await _measured(stack, plain, POLLERS, seconds)
            listed = await _measured(stack, get(f"{base}/batches?limit=100"), 8, seconds)
    text = (
        f"{many['per_second']:.0f} polls/s of {POLLERS} pollers, API {many['api_ms']:.2f} ms CPU a poll (one poller "
        f"{one['api_ms']:.2f}, /health {health['api_ms']:.2f}); worker and Temporal {many['behind']:.2f} cores "
        f"(one poller {one['behind']:.2f}, none {idle['behind']:.2f})"
    )
    raw = {"idle": idle, "one": one, "many": many, "health": health, "listed": listed}
    report("P8", many["api_ms"] / TARGET_MS, "≤ 1 of 1 ms", text, **raw)


async def _measured(
    stack: Stack, ask: Callable[[], Awaitable[object]] | None, askers: int, seconds: float
) -> dict[str, float]:
    """CPU of the processes while so many ask one after another: of the API for each, of the others in cores."""
    before, began, asked, slowest = stack.usage(), time.perf_counter(), 0, 0.0

    async def asking() -> None:
        nonlocal asked, slowest
        while ask and time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            await ask()
            slowest = max(slowest, time.perf_counter() - sent)
            asked += 1

    await asyncio.gather(asyncio.sleep(seconds), *(asking() for _ in range(askers)))
    took, after = time.perf_counter() - began, stack.usage()
    cpu = {name: after[name].cpu_seconds - before[name].cpu_seconds for name in after}
    behind = (cpu["worker"] + cpu["temporal"]) / took
    return {
        "per_second": asked / took,
        "api_ms": 1000 * cpu["api"] / asked if asked else 0.0,
        "behind": behind,
        "slowest_ms": 1000 * slowest,
    }


if __name__ == "__main__":
    asyncio.run(main(2 if quick() else 10))
