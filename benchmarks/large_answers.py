"""P9: peak memory of a worker whose upstream gives 24 answers of 40 MB at once, with and without the shared budget."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from aiohttp import web
from openai import AsyncOpenAI

from benchmarks.figures import report

ANSWERS = 24
ANSWER_BYTES = 40_000_000
BUDGET = 512 << 20


async def _engine() -> tuple[web.AppRunner, str]:
    body = b'{"id":"x","choices":[{"message":{"content":"' + b"x" * (ANSWER_BYTES - 60) + b'"}}]}'

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", answer), web.get("/v1/models", models)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"


def _peak_mb(pid: int) -> float:
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert peak
    return int(peak[1]) / 1000


async def measure(budget: int) -> tuple[float, float]:
    """Peak memory in MB of one process that is API and worker, and seconds of the batch."""
    runner, url = await _engine()
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        env = {name: value for name, value in os.environ.items() if not name.startswith("EVERBATCH_")}
        env |= {"EVERBATCH_UPSTREAM_URL": url, "EVERBATCH_DATA_DIR": folder, "EVERBATCH_MAX_ANSWERS_BYTES": str(budget)}
        command = [
            sys.executable,
            "-m",
            "api.cli.main",
            "dev",
            *("--port", "0", "--temporal-port", "0", "--ui-port", "0"),
        ]
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout
            found = None
            while not found:
                found = re.search(r"API +(http\S+)", (await process.stdout.readline()).decode())
            client = await stack.enter_async_context(AsyncOpenAI(api_key="none", base_url=found[1]))
            line = (
                '{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'
            )
            lines = "".join(line % number for number in range(ANSWERS)).encode()
            file = await client.files.create(file=("in.jsonl", lines), purpose="batch")
            started = time.monotonic()
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status not in ("completed", "failed", "expired"):
                await asyncio.sleep(0.2)
                batch = await client.batches.retrieve(batch.id)
            seconds = time.monotonic() - started
            assert batch.request_counts
            assert batch.request_counts.completed == ANSWERS, batch
            return _peak_mb(process.pid), seconds
        finally:
            process.terminate()
            await process.wait()
            await runner.cleanup()


async def main() -> None:
    bounded, seconds = await measure(BUDGET)
    free, free_seconds = await measure(1 << 40)
    text = (
        f"{ANSWERS} answers of {ANSWER_BYTES / 1e6:.0f} MB at once: peak {bounded:.0f} MB in {seconds:.1f} s with a "
        f"budget of {BUDGET >> 20} MiB, {free:.0f} MB in {free_seconds:.1f} s without; the ratio is that of the peaks"
    )
    report("P9", bounded / free, "≤ 900 MB, below 0.85", text, bounded_mb=bounded, free_mb=free)


if __name__ == "__main__":
    asyncio.run(main())
