"""One ``everbatch dev`` and one engine for all tests that only use them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from openai import AsyncOpenAI

from tests.e2e.processes import Child, Launcher, launcher
from tests.fakes.engine_process import EngineProcess


@dataclass
class SharedDev:
    launcher: Launcher
    engine: EngineProcess
    client: AsyncOpenAI
    process: Child

    async def command(self, name: str, *arguments: str) -> Child:
        """A client command of ``everbatch``, for this server."""
        return await self.launcher.start(name, "--base-url", str(self.client.base_url), *arguments)


@contextlib.asynccontextmanager
async def shared_dev(folder: Path) -> AsyncGenerator[SharedDev]:
    async with EngineProcess() as engine, launcher(folder) as processes:
        processes.env["EVERBATCH_UPSTREAM_URL"] = engine.url
        process, client = await processes.dev()
        async with client:
            yield SharedDev(processes, engine, client, process)
