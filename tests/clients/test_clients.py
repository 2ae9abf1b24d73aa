"""The users' own tools, each in an environment of its own, from end to end against our processes.

``make clients`` runs all and writes the table in ``docs/clients.md``; ``make clients-quick`` runs the quick ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import APIError

from api.client import AsyncBatchClient
from tests.clients.engine import MODEL, answer_to
from tests.clients.environments import Environment
from tests.clients.table import Table
from tests.clients.tools import NEIGHBOURS, NOTHING, PROMPTS, RIGHT, TOOLS, Tool, raises
from tests.e2e.processes import launcher

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

PROGRAMS = Path(__file__).parent / "programs"
ENGINE_LINE = re.compile(r"engine on (\d+)")


@dataclass(frozen=True)
class Server:
    base_url: str


@pytest.fixture(scope="session")
async def everbatch(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    """Our processes. Others are answered all the time, so that a request without an answer soon is one that failed."""
    async with launcher(tmp_path_factory.mktemp("clients")) as processes:
        engine = await processes.start("engine", module="tests.clients.engine")
        port = (await engine.said(ENGINE_LINE))[1]
        settings = {"UPSTREAM_URL": f"http://127.0.0.1:{port}/v1", "REQUEST_TIMEOUT": "2", "MAX_ATTEMPTS": "1"}
        _, openai = await processes.dev(**{f"EVERBATCH_{name}": value for name, value in settings.items()})
        async with AsyncBatchClient(openai) as client:
            others = asyncio.create_task(_others(client))
            yield Server(str(openai.base_url))
            others.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await others


async def _others(client: AsyncBatchClient) -> None:
    while True:
        with contextlib.suppress(APIError):
            await client.submit(["somebody else's"], model=MODEL)
        await asyncio.sleep(0.5)


@pytest.fixture(scope="session")
def table() -> Any:
    found = Table()
    yield found
    if os.environ.get("EVERBATCH_WRITE_CLIENTS") == "1":
        found.write()


def _environment(tool: Tool) -> Path:
    """The tool's interpreter; it is installed once into Everbatch's cache."""
    if tool.needs:
        if not shutil.which(tool.needs) and not importlib.util.find_spec(tool.needs):
            pytest.skip(f"LEFT OUT: {tool.name} needs {tool.needs}")
        return Path(sys.executable)
    environment = Environment(tool)
    if not environment.is_installed():
        try:
            environment.install()
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            pytest.skip(f"LEFT OUT: {' '.join(tool.packages)} cannot be installed: {str(error)[-300:]}")
    return environment.python


async def _outcomes(tool: Tool, server: Server) -> dict[str, Any]:
    python = await asyncio.to_thread(_environment, tool)
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(str(python), str(PROGRAMS / "harness.py"), tool.program),
            cwd=folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        given = {"base_url": server.base_url.rstrip("/"), "model": MODEL, "scenarios": PROMPTS}
        output, errors = await process.communicate(json.dumps(given).encode())
    assert process.returncode == 0, errors.decode()[-3000:]
    sys.stderr.write(errors.decode(errors="replace")[-20_000:])  # shown if the test fails
    return json.loads(output)


def judged(prompts: list[str], outcome: dict[str, Any]) -> str:
    if "raised" in outcome:
        return raises(outcome["raised"])
    texts: list[str | None] = outcome["texts"]
    wanted = [None if "[[" in prompt else answer_to(prompt) for prompt in prompts]
    if texts == wanted:
        return RIGHT
    if not any(texts):
        return NOTHING
    if any(text not in (None, mine) for text, mine in zip(texts, wanted, strict=True)):
        return NEIGHBOURS if set(texts) <= {None, *wanted} else f"other texts: {texts}"
    return f"{sum(text == mine for text, mine in zip(texts, wanted, strict=True))} of {len(texts)}"


@pytest.mark.parametrize(
    "tool", [pytest.param(tool, id=tool.name, marks=[pytest.mark.quick] if tool.quick else []) for tool in TOOLS]
)
async def test_the_tool_as_its_users_call_it(tool: Tool, everbatch: Server, table: Table) -> None:
    outcomes = await _outcomes(tool, everbatch)
    found = {name: judged(prompts, outcomes[name]) for name, prompts in PROMPTS.items()}
    table.add(tool, found)
    assert found == tool.outcomes, outcomes
