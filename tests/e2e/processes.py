"""Everbatch as its users run it: ``python -m api.cli.main …`` as processes, looked at from outside."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from openai.types import Batch

from api.client import TERMINAL
from tests.integration.stack import Finished, jsonl, until

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 100.0
STOP_SECONDS = 20.0

API_LINE = re.compile(r"Everbatch API +(?:on )?http://127\.0\.0\.1:(\d+)/v1")
TEMPORAL_LINE = re.compile(r"Temporal on (127\.0\.0\.1:\d+), UI on")
WORKER_LINE = re.compile(r"Everbatch worker on task queue")


@dataclass(frozen=True)
class ProcessId:
    """Of one process for ever: the system gives its number to others later, but never with the same start."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        fields = _stat(self.pid)
        return fields is not None and fields[19] == self.started and fields[0] != "Z"


class Child:
    """A command under way, its output in files. It leads a process group of its own, as under a shell."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path, errors: Path) -> None:
        self._process = process
        self._output = output
        self._errors = errors

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def stdout(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._errors.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """To the process alone, as ``kill`` does."""
        os.kill(self.pid, number)

    def interrupt_group(self) -> None:
        """As Ctrl-C in a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    async def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code."""
        try:
            return await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            raise AssertionError(f"still running after {seconds} s\n{self.stdout}\n{self.stderr}") from None

    async def kill(self) -> None:
        if self.running:
            self._process.kill()
        await self._process.wait()

    async def said(self, pattern: re.Pattern[str], seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until a line matches, on either stream."""

        async def look() -> re.Match[str] | None:
            found = pattern.search(self.stdout) or pattern.search(self.stderr)
            if not found and not self.running:
                raise AssertionError(f"ended without saying {pattern.pattern!r}:\n{self.stdout}\n{self.stderr}")
            return found

        found = await until(look, pattern.pattern, seconds)
        assert found
        return found

    def family(self) -> list[ProcessId]:
        """This process and its descendants."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
        tree = [self.pid]
        for one in tree:
            tree += parents.get(one, [])
        return [ProcessId(pid, fields[19]) for pid in tree if (fields := _stat(pid))]

    def check_clean_exit(self) -> None:
        """What a user must not see when a process stops."""
        for text in (self.stdout, self.stderr):
            assert "Traceback" not in text, text
            assert "Fatal Python error" not in text, text
            assert "was never retrieved" not in text, text


def _stat(pid: int) -> list[str] | None:
    """The fields after the command, of which the first is the state; ``None`` where the process has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


async def gone(family: Iterable[ProcessId], seconds: float = 15) -> None:
    """Wait until none of the processes is left."""
    family = list(family)

    async def look() -> bool:
        return not any(one.alive for one in family)

    await until(look, f"the end of {family}", seconds)


class Launcher:
    """Starts processes in one folder with one environment, and ends what is left of them."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.env = {
            "EVERBATCH_DATA_DIR": str(folder / "data"),
            "EVERBATCH_STORE": str(folder / "store"),
            **env,
        }
        self._children: list[Child] = []
        self._numbers = count()  # several may start at once

    async def start(self, *arguments: str, env: dict[str, str] | None = None, module: str = "api.cli.main") -> Child:
        command = [sys.executable, "-m", module, *arguments]
        return await self.program(arguments[0], command, {**self.env, **(env or {})})

    async def program(self, name: str, command: Sequence[str], env: dict[str, str]) -> Child:
        """Any other program; ``name`` is for its output, and ``env`` all that it gets of settings."""
        number = next(self._numbers)
        output, errors = (self.folder / f"{number}-{name}.{kind}" for kind in ("out", "err"))
        with output.open("wb") as to_output, errors.open("wb") as to_errors:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=ROOT,
                env={**_clean_environment(), **env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=to_output,
                stderr=to_errors,
                start_new_session=True,
            )
        child = Child(process, output, errors)
        self._children.append(child)
        return child

    async def serve(self, **env: str) -> tuple[Child, AsyncOpenAI]:
        """The API on a free port, and a client of it."""
        child = await self.start("serve", "--port", "0", env=env)
        return child, openai_of(await api_port(child))

    async def worker(self, *arguments: str, **env: str) -> Child:
        """A worker that polls."""
        child = await self.start("worker", *arguments, env=env)
        await child.said(WORKER_LINE)
        return child

    async def temporal(self) -> tuple[Child, str]:
        """The embedded Temporal on free ports, and its address."""
        child = await self.start("temporal", "--port", "0", "--ui-port", "0")
        return child, (await child.said(TEMPORAL_LINE))[1]

    async def dev(self, **env: str) -> tuple[Child, AsyncOpenAI]:
        child = await self.start("dev", "--port", "0", "--temporal-port", "0", "--ui-port", "0", env=env)
        return child, openai_of(await api_port(child))

    async def close(self) -> None:
        for child in self._children:
            family = child.family() if child.running else []
            await child.kill()
            with contextlib.suppress(AssertionError):
                await gone(family)


def _clean_environment() -> dict[str, str]:
    """Ours without settings; only the Temporal binary may be named from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EVERBATCH_", "TEMPORAL_"))}
    if binary := os.environ.get("EVERBATCH_TEMPORAL_CLI"):
        kept["EVERBATCH_TEMPORAL_CLI"] = binary
    # Many processes start here, each a second or two slower where nothing compiled can be kept.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    kept["PYTHONPYCACHEPREFIX"] = str(ROOT / ".pytest_cache" / "pycache")
    return kept


async def api_port(child: Child) -> int:
    return int((await child.said(API_LINE))[1])


def openai_of(port: int) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30)


@contextlib.asynccontextmanager
async def launcher(folder: Path, **env: str) -> AsyncGenerator[Launcher]:
    launched = Launcher(folder, **env)
    try:
        yield launched
    finally:
        await launched.close()


# A client's steps


async def submit(client: AsyncOpenAI, lines: Iterable[dict[str, Any]], endpoint: Any = "/v1/chat/completions") -> str:
    file = await client.files.create(file=("in.jsonl", jsonl(list(lines))), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    return batch.id


async def until_batch(
    client: AsyncOpenAI, batch_id: str, wanted: Callable[[Batch], object], seconds: float = 60
) -> Batch:
    latest: list[Batch] = []

    async def look() -> bool:
        latest[:] = [await client.batches.retrieve(batch_id)]
        return bool(wanted(latest[0]))

    try:
        await until(look, batch_id, seconds)
    except AssertionError:
        raise AssertionError(f"not within {seconds} s; last seen: {latest}") from None
    return latest[0]


def done(batch: Batch) -> int:
    counts = batch.request_counts
    assert counts
    return counts.completed + counts.failed


async def finished(client: AsyncOpenAI, batch_id: str, seconds: float = 60) -> Finished:
    batch = await until_batch(client, batch_id, lambda batch: batch.status in TERMINAL, seconds)
    result = Finished(batch)
    for file_id, kind in ((batch.output_file_id, "output"), (batch.error_file_id, "errors")):
        if file_id:
            result.take(kind, (await client.files.content(file_id)).content)
    return result


def now() -> int:
    """A moment, by the clock of the engine's log."""
    return time.monotonic_ns()
