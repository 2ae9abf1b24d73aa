"""Requests per second of one and of two workers whose store is on S3 (versitygw here), against one in a folder."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import quick, report, write_input
from benchmarks.stack import Run, run_stack
from tests.s3_server import BUCKET, S3Server, build, find_binary

IN_FLIGHT = 32
"""Of each worker."""


async def main(scale: int) -> None:
    for workers in (1, 2):
        with tempfile.TemporaryDirectory(prefix="everbatch-s3-") as folder:
            server = S3Server(find_binary() or build(), Path(folder))
            server.start()
            try:
                on_s3 = await runs(scale, workers, {"EVERBATCH_STORE": f"s3://{BUCKET}/bench", **server.variables})
            finally:
                server.kill()
        in_folder = await runs(scale, workers, {})
        for s3, local in zip(on_s3, in_folder, strict=True):
            text = f"{workers} worker(s), {s3.requests:,}: {s3.per_second:.0f}/s on S3, {local.per_second:.0f}/s in a "
            text += f"folder; worker CPU {worker_ms(s3):.3f} and {worker_ms(local):.3f} ms each"
            report("S3", s3.per_second / local.per_second, "≥ 0.8", text, s3=asdict(s3), folder=asdict(local))


def worker_ms(run: Run) -> float:
    """Milliseconds of CPU of all workers for each request."""
    return 1000 * sum(seconds for name, seconds in run.cpu.items() if name.startswith("worker")) / run.requests


async def runs(scale: int, workers: int, variables: dict[str, str]) -> list[Run]:
    """One of groups at 20 ms, one of groups without latency, one with an activity for each request."""
    done: list[Run] = []
    async with run_stack(max_in_flight=IN_FLIGHT, workers=workers, variables=variables) as stack:
        await stack.run(write_input(stack.folder / "warm.jsonl", 200))
        for count, latency in ((5000 // scale, 0.02), (20_000 // scale, 0.0), (500, 0.02)):
            await stack.engine.control(latency=latency)
            done.append(await stack.run(write_input(stack.folder / f"in-{count}-{latency}.jsonl", count)))
    return done


if __name__ == "__main__":
    asyncio.run(main(scale=4 if quick() else 1))
