"""What Everbatch is measured against: a bare loop with the openai client that keeps nothing but a result file.

``python -m benchmarks.baseline --url http://127.0.0.1:8001/v1 --input in.jsonl --output out.jsonl``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI, DefaultAioHttpClient


@dataclass(frozen=True)
class LoopRun:
    requests: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


async def bare_loop(base_url: str, source: Path, target: Path, in_flight: int = 64) -> LoopRun:
    """Send every request of a batch file, ``in_flight`` at once and the next as soon as one is answered."""
    async with AsyncOpenAI(
        base_url=base_url,
        api_key="none",
        max_retries=0,
        http_client=DefaultAioHttpClient(limits=httpx2.Limits(max_connections=in_flight)),
    ) as client:
        await client.models.list()  # making the client and its TLS context is no part of the loop
        start, cpu = time.perf_counter(), time.process_time()
        with source.open("rb") as lines, target.open("ab") as results:
            shared = iter(lines)
            counts = await asyncio.gather(*(_lane(client, shared, results) for _ in range(in_flight)))
        return LoopRun(sum(counts), time.perf_counter() - start, time.process_time() - cpu)


async def _lane(client: AsyncOpenAI, lines: Iterable[bytes], results: BufferedWriter) -> int:
    """Take one request after the other from the lines that all lanes share."""
    count = 0
    for line in lines:
        request: dict[str, Any] = json.loads(line)
        path = request["url"].removeprefix("/v1")
        response = await client.post(path, body=request["body"], cast_to=httpx2.Response)
        head = b'{"custom_id":%b,"response":{"status_code":%d,"body":'
        results.write(head % (json.dumps(request["custom_id"]).encode(), response.status_code))
        results.write(response.content + b"}}\n")
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description="The bare loop by itself.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, default=64)
    args = parser.parse_args()
    run = asyncio.run(bare_loop(args.url, args.input, args.output, args.in_flight))
    print(f"{run.requests} requests, {run.per_second:.0f}/s, {1000 * run.cpu_seconds / run.requests:.3f} ms CPU each")


if __name__ == "__main__":
    main()
