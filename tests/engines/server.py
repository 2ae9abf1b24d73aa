"""One real inference server as a process, on a port that it keeps over restarts."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from tests.free_ports import free_ports
from tests.integration.stack import until


class EngineServer:
    """Subclasses say what is run, how it tells that it is ready, and what its log tells."""

    model: str
    start_seconds = 30.0

    def __init__(self, log: Path, port: int, command: list[str], env: dict[str, str] | None = None) -> None:
        self.models = [self.model]
        log.parent.mkdir(exist_ok=True)
        self._log = log
        self._port = port
        self._command = command
        self._env = env
        self._process: asyncio.subprocess.Process | None = None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    async def start(self) -> None:
        assert self._process is None, "it is running"
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | (self._env or {}),
                start_new_session=True,
            )
        await until(self._is_ready, f"the engine is ready (see {self._log})", self.start_seconds)

    async def kill(self) -> None:
        """``kill -9`` of it and its children. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def ask(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body of the engine's own answer."""
        async with aiohttp.ClientSession() as session, session.post(self.root + path, json=body) as response:
            return response.status, await response.json(content_type=None)

    async def until_busy(self, requests: int, seconds: float) -> None:
        async def look() -> bool:
            return await self.busy() == requests

        await until(look, f"{requests} requests at work", seconds)

    async def busy(self) -> int:
        """Requests that it works on."""
        raise NotImplementedError

    def begun(self) -> int:
        """Requests that it began to work on, by its own log, over all of its starts."""
        raise NotImplementedError

    async def _is_ready(self) -> bool:
        assert self._process, "it is not running"
        assert self._process.returncode is None, f"it ended: see {self._log}"
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.root}/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def _count(self, words: str) -> int:
        return self._log.read_text(errors="replace").count(words)


Server = TypeVar("Server", bound=EngineServer)


@contextlib.asynccontextmanager
async def starter(make: Callable[..., Server], folder: Path) -> AsyncGenerator[Callable[..., Awaitable[Server]]]:
    """Starts engines, and kills them at the end: ``await start("embed", runs=False)``.

    Args: ``make`` is called with the folder of the logs, a port, the kind of the model, and further options.
    """
    engines: list[Server] = []

    async def start(kind: str = "chat", *, runs: bool = True, **options: Any) -> Server:
        made = make(folder, free_ports(1)[0], kind, **options)
        engines.append(made)
        if runs:
            await made.start()
        return made

    try:
        yield start
    finally:
        for one in engines:
            await one.kill()


def install_if_missing(name: str, is_installed: Callable[[], bool], install: Callable[[], None]) -> int:
    """The exit status of a command that installs an engine."""
    if is_installed():
        return 0
    try:
        install()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        words = str(error).strip().splitlines() or ["no reason given"]
        sys.stderr.write(f"{name} cannot be installed from the package registry: {words[-1].strip()}\n")
        return 1
    return 0
