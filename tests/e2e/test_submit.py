"""``everbatch submit``, from file to file."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.e2e.processes import Child, Launcher, launcher
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import jsonl, request, requests

BATCH_LINE = re.compile(r"^batch (batch_[0-9a-f]{32})$", re.MULTILINE)


@dataclass
class Server:
    launcher: Launcher
    engine: EngineProcess
    client: AsyncOpenAI

    async def submit(self, folder: Path, lines: list[dict[str, Any] | str], *more: str) -> Child:
        source = folder / "in.jsonl"
        source.write_bytes(jsonl(lines))
        arguments = ("-i", str(source), "-o", str(folder / "out.jsonl"), *more)
        return await self.launcher.start("submit", "--base-url", str(self.client.base_url), *arguments)


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    async with EngineProcess() as engine, launcher(tmp_path_factory.mktemp("submit")) as processes:
        processes.env["EVERBATCH_UPSTREAM_URL"] = engine.url
        _, client = await processes.dev()
        async with client:
            yield Server(processes, engine, client)


@pytest.fixture
async def server(shared: Server) -> Server:
    await shared.engine.control()
    await shared.engine.reset_counters()
    return shared


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


async def test_all_succeed(server: Server, tmp_path: Path) -> None:
    child = await server.submit(tmp_path, [*requests(5)], "--errors", str(tmp_path / "err.jsonl"))
    assert await child.wait() == 0
    assert ids_in(tmp_path / "out.jsonl") == [f"r-{n}" for n in range(5)]
    assert (tmp_path / "err.jsonl").read_bytes() == b""
    # Not a terminal: plain lines, each said once, nothing redrawn.
    said = child.stderr
    assert "\r" not in said
    assert "\x1b" not in said
    assert BATCH_LINE.search(said)
    assert re.search(r"^completed +\[#+\] 5/5$", said, re.MULTILINE)
    assert "completed: 5 requests, 5 completed, 0 failed" in said
    assert f"results: {tmp_path / 'out.jsonl'}" in said
    child.check_clean_exit()


async def test_some_fail(server: Server, tmp_path: Path) -> None:
    await server.engine.control(mode="status", status=400, match="bad")
    lines = [request("ok-1"), request("bad-2"), request("ok-3")]
    child = await server.submit(tmp_path, [*lines], "--errors", str(tmp_path / "err.jsonl"))
    assert await child.wait() == 2
    assert ids_in(tmp_path / "out.jsonl") == ["ok-1", "ok-3"]
    assert ids_in(tmp_path / "err.jsonl") == ["bad-2"]
    assert "completed: 3 requests, 2 completed, 1 failed" in child.stderr
    child.check_clean_exit()


async def test_a_bad_input_names_its_lines(server: Server, tmp_path: Path) -> None:
    child = await server.submit(tmp_path, [request("a"), "nope", request("a")])
    assert await child.wait() == 1
    assert "line 2: This line is not parseable as valid JSON. (invalid_json_line)" in child.stderr
    assert "line 3: " in child.stderr
    assert not (tmp_path / "out.jsonl").exists()
    child.check_clean_exit()


async def test_the_same_key_twice_is_one_batch(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        child = await server.submit(tmp_path, [*requests(3)], "--idempotency-key", "night-run-7")
        assert await child.wait() == 0
        assert ids_in(tmp_path / "out.jsonl") == ["r-0", "r-1", "r-2"]
    assert (await server.engine.counters()).received == {"r-0": 1, "r-1": 1, "r-2": 1}


async def test_ctrl_c_leaves_the_batch_running(server: Server, tmp_path: Path) -> None:
    await server.engine.control(mode="hang")
    child = await server.submit(tmp_path, [*requests(2)])
    batch_id = (await child.said(BATCH_LINE))[1]
    await child.said(re.compile("in_progress"))
    child.interrupt_group()
    assert await child.wait() == 130
    assert f"stopped; the batch goes on: {batch_id}" in child.stderr
    child.check_clean_exit()
    assert (await server.client.batches.retrieve(batch_id)).status == "in_progress"
    await server.client.batches.cancel(batch_id)


async def test_a_cancelled_batch(server: Server, tmp_path: Path) -> None:
    await server.engine.control(mode="hang", match="r-1")
    child = await server.submit(tmp_path, [*requests(2)])
    batch_id = (await child.said(BATCH_LINE))[1]
    await child.said(re.compile(r"in_progress .* 1/2"))
    await server.client.batches.cancel(batch_id)
    assert await child.wait() == 1
    assert ids_in(tmp_path / "out.jsonl") == ["r-0"]
    assert "cancelled: 2 requests, 1 completed, 1 failed" in child.stderr


async def test_no_server(processes: Launcher, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(requests(1)))
    url = "http://127.0.0.1:9/v1"
    child = await processes.start("submit", "-i", str(source), "-o", str(tmp_path / "o"), "--base-url", url)
    assert await child.wait(30) == 1
    (line,) = child.stderr.splitlines()
    assert line.startswith("everbatch submit: ")
    assert url in line
    assert not (tmp_path / "o").exists()
