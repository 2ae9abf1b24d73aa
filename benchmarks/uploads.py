"""Uploads: a file in 64 MiB parts through the API, its time against a bare write of the same bytes, and memory."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import tempfile
import time
from pathlib import Path

from openai import APIConnectionError, AsyncOpenAI, omit
from openai.resources.uploads.uploads import DEFAULT_PART_SIZE

from benchmarks.figures import report
from benchmarks.processes import ChildProcess
from tests.free_ports import free_ports

IN_PARALLEL = 4


def bare_write(path: Path, part: bytes, size: int) -> float:
    """Seconds to write and sync the bytes once."""
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, len(part)):
            file.write(part[: size - start])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


async def ready(client: AsyncOpenAI, server: ChildProcess) -> None:
    for _ in range(200):
        server.check()
        try:
            await client.files.list(limit=1)
            return
        except APIConnectionError:
            await asyncio.sleep(0.2)
    raise RuntimeError(server.tail())


async def upload(client: AsyncOpenAI, part: bytes, size: int, with_md5: bool) -> dict[str, float]:
    started = time.perf_counter()
    made = await client.uploads.create(bytes=size, filename="big", mime_type="x", purpose="user_data")
    room = asyncio.Semaphore(IN_PARALLEL)

    async def send(start: int) -> str:
        async with room:
            return (await client.uploads.parts.create(made.id, data=part[: size - start])).id

    part_ids = await asyncio.gather(*(send(start) for start in range(0, size, len(part))))
    arrived = time.perf_counter()
    md5 = md5_of(part, size) if with_md5 else omit
    completing = time.perf_counter()
    done = await client.uploads.complete(made.id, part_ids=part_ids, md5=md5, timeout=3600)
    ended = time.perf_counter()
    assert done.file, "the upload is completed"
    assert done.file.bytes == size
    return {"parts": arrived - started, "complete": ended - completing}


def md5_of(part: bytes, size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for start in range(0, size, len(part)):
        digest.update(part[: size - start])
    return digest.hexdigest()


async def main(megabytes: int, with_md5: bool) -> None:
    size = megabytes * 1024 * 1024
    part = os.urandom(DEFAULT_PART_SIZE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = bare_write(folder / "bare", part, size)
        (port,) = free_ports(1)
        env = {"EVERBATCH_STORE": str(folder / "store"), "EVERBATCH_DATA_DIR": str(folder / "data")}
        env["EVERBATCH_UPSTREAM_URL"] = "http://127.0.0.1:9/v1"
        server = await ChildProcess.start("serve", ["serve", "--port", str(port)], env, folder / "serve.log")
        try:
            async with AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as client:
                await ready(client, server)
                before = server.usage()
                seconds = await upload(client, part, size, with_md5)
                after = server.usage()
        finally:
            await server.stop()
    total = sum(seconds.values())
    text = (
        f"{megabytes} MiB in {total:.1f} s (parts {seconds['parts']:.1f}, complete {seconds['complete']:.1f}"
        f"{' with md5' if with_md5 else ''}), a bare write {bare:.1f} s; API process {after.largest_mb:.0f} MB, "
        f"before {before.largest_mb:.0f} MB; CPU {after.cpu_seconds - before.cpu_seconds:.1f} s"
    )
    report("uploads", total / bare, "flat memory", text, seconds=seconds, bare=bare, peak_rss_mb=after.largest_mb)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=2048, help="MiB in the file")
    parser.add_argument("--md5", action="store_true", help="have the server check the whole file's md5")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.megabytes, arguments.md5))
