"""One real inference server as a process, on a port that it keeps over restarts."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp

from tests.integration.stack import until


class EngineServer:
    """Subclasses say what is run, how it tells that it is ready, and what its log tells."""

    model: str
    start_seconds = 30.0

    def __init__(self, log: Path, port: int, command: list[str], env: dict[str, str] | None = None) -> None:
        self.models = [self.model]
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
