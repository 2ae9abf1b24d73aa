"""Everbatch at its defaults in front of a real vLLM, against ``vllm run-batch`` with the same options and input.

.venv/bin/python -m tests.engines.vllm  # once: 6 GB
.venv/bin/python -m benchmarks.run_batch

The time is that of the work alone: of the batch's workflow, and of run-batch from its first progress line to its last.
Loading the model is part of neither. A bare HTTP loop shows how much of the difference is HTTP, and how much the cores
that engine and clients share: vLLM alone takes two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import aiohttp

from benchmarks.engines import write_chat
from benchmarks.figures import report
from benchmarks.stack import run_stack
from tests.engines.vllm import ENVIRONMENT, MODELS, VllmServer, command, is_installed
from tests.free_ports import free_ports

SEQUENCES = 128


async def everbatch(path: Path, folder: Path, setting: str) -> float:
    """Seconds from the start of the batch's workflow to its end."""
    server = VllmServer(folder, free_ports(1)[0], sequences=SEQUENCES, logs_requests=False)
    await server.start()
    try:
        async with run_stack(
            upstream_url=server.url, max_in_flight="auto" if setting == "auto" else int(setting)
        ) as it:
            await it.run(write_chat(folder / "warm.jsonl", 64, server.model, 16))
            return (await it.run(path)).seconds
    finally:
        await server.kill()


async def bare_loop(path: Path, folder: Path, in_flight: int) -> float:
    """Seconds in which a loop that does nothing else sends the same requests over HTTP."""
    server = VllmServer(folder, free_ports(1)[0], sequences=SEQUENCES, logs_requests=False)
    await server.start()
    requests = iter([json.loads(line)["body"] for line in path.read_bytes().splitlines()])  # noqa: ASYNC240
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def sender() -> None:
                for body in requests:
                    async with session.post(f"{server.url}/chat/completions", json=body) as answer:
                        await answer.read()
                        answer.raise_for_status()

            begun = time.perf_counter()
            await asyncio.gather(*(sender() for _ in range(in_flight)))
            return time.perf_counter() - begun
    finally:
        await server.kill()


async def run_batch(path: Path, folder: Path, count: int) -> float:
    """Seconds of ``vllm run-batch`` from its first progress line to the one that says that all is done."""
    output = folder / "out.jsonl"
    options = ["--model", str(MODELS / "chat"), "--served-model-name", "tiny-chat", "--enforce-eager"]
    options += ["--max-model-len", "2048", "--max-num-seqs", str(SEQUENCES)]
    process = await asyncio.create_subprocess_exec(
        *command("run-batch", "-i", str(path), "-o", str(output), *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT | {"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        start_new_session=True,
    )
    assert process.stderr
    begun = ended = 0.0
    text = b""
    while chunk := await process.stderr.read(4096):
        text = (text + chunk)[-4096:]
        progress = re.findall(rb"Running batch:[^|]*\| *(\d+)/(\d+)", text)
        if progress and not begun:
            begun = time.perf_counter()
        if progress and int(progress[-1][0]) == count and not ended:
            ended = time.perf_counter()
    await process.wait()
    if process.returncode or not ended or output.read_bytes().count(b"\n") != count:
        raise RuntimeError(f"run-batch did not go well: {text.decode(errors='replace')}")
    return ended - begun


async def main(args: argparse.Namespace) -> None:
    if not is_installed():
        raise SystemExit("vLLM is not installed: .venv/bin/python -m tests.engines.vllm")
    with tempfile.TemporaryDirectory(prefix="everbatch-bench-") as name:
        folder = Path(name)
        path = write_chat(folder / "in.jsonl", args.count, "tiny-chat", args.tokens)
        offline: list[float] = []
        loop: list[float] = []
        ours: dict[str, list[float]] = {setting: [] for setting in args.settings}
        for _ in range(args.rounds):
            offline.append(await run_batch(path, folder, args.count))
            loop.append(await bare_loop(path, folder, 2 * SEQUENCES))
            for setting, seconds in ours.items():
                seconds.append(await everbatch(path, folder, setting))
    runs = f"{_seconds(offline)} s; a bare loop over HTTP: {_seconds(loop)}"
    for setting, seconds in ours.items():
        text = f"{args.count:,} requests at {setting} in flight: {_seconds(seconds)} s; `vllm run-batch`: {runs} s"
        report(
            f"run-batch, {setting}",
            mean(offline) / mean(seconds),
            ">= 0.95",
            text,
            everbatch=seconds,
            offline=offline,
            loop=loop,
        )


def _seconds(runs: Sequence[float]) -> str:
    return ", ".join(f"{seconds:.1f}" for seconds in runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=128, help="in the longest answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--settings", type=lambda text: text.split(","), default=["auto"], help="auto, 64, 1024, …")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(_arguments()))
