"""The fake engine as a process of its own, held by a test or a benchmark."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.fakes.engine_script import Counters, Script

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 60.0


class EngineProcess:
    """Runs ``python -m tests.fakes.engine`` with the given options for the length of an ``async with``.

    Options are the command's, with underscores: ``EngineProcess(latency=0.1, max_concurrent=8)``; a list repeats
    the option.
    """

    def __init__(self, *, port: int = 0, **options: str | float | Path | list[str]) -> None:
        self.port = port
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    @property
    def root(self) -> str:
        """Address without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients, ending in ``/v1``."""
        return f"{self.root}/v1"

    @property
    def pid(self) -> int:
        assert self._process, "the engine is not running"
        return self._process.pid

    async def __aenter__(self) -> EngineProcess:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start, on the port it had before if it had one, and wait until it listens."""
        assert self._process is None, "the engine is running"
        arguments = ["--port", str(self.port)]
        for name, value in self._options.items():
            for one in value if isinstance(value, list) else [value]:
                arguments += [f"--{name.replace('_', '-')}", str(one)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.fakes.engine", *arguments, cwd=_ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout
        line = await asyncio.wait_for(self._process.stdout.readline(), _START_SECONDS)
        word, _, port = line.decode().strip().partition(" ")
        if word != "ready":
            await self.kill()
            raise RuntimeError(f"the fake engine did not start: {line!r}")
        self.port = int(port)

    async def stop(self) -> None:
        """End it and let it flush its log. Does nothing when it is not running."""
        if self._process:
            await self._end(self._process.terminate)

    async def kill(self) -> None:
        """``kill -9``. Does nothing when it is not running."""
        if self._process:
            await self._end(self._process.kill)

    async def restart(self) -> None:
        """Kill it and start it again on the same port, with its counters at zero and no script."""
        await self.kill()
        await self.start()

    async def _end(self, how: Any) -> None:
        process, self._process = self._process, None
        assert process
        with contextlib.suppress(ProcessLookupError):
            how()
        await process.wait()

    async def control(self, **script: Any) -> None:
        """Tell it how to treat requests from now on: the fields of :class:`Script`."""
        body = msgspec.json.encode(msgspec.convert(script, Script))
        await self._request("POST", body)

    async def counters(self) -> Counters:
        return msgspec.json.decode(await self._request("GET"), type=Counters)

    async def reset_counters(self) -> None:
        await self._request("DELETE")

    async def _request(self, method: str, body: bytes | None = None) -> bytes:
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.request(method, f"{self.root}/control", data=body) as response,
        ):
            return await response.read()
