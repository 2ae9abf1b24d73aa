"""``everbatch submit``, from file to file."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.e2e.processes import Child
from tests.e2e.shared_dev import SharedDev
from tests.integration.stack import jsonl, request, requests

BATCH_LINE = re.compile(r"^batch (batch_[0-9a-f]{32})$", re.MULTILINE)


async def submit(server: SharedDev, folder: Path, lines: list[dict[str, Any] | str], *more: str) -> Child:
    source = folder / "in.jsonl"
    source.write_bytes(jsonl(lines))
    return await server.command("submit", "-i", str(source), "-o", str(folder / "out.jsonl"), *more)


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


async def test_all_succeed(server: SharedDev, tmp_path: Path) -> None:
    child = await submit(server, tmp_path, [*requests(5)], "--errors", str(tmp_path / "err.jsonl"))
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


async def test_some_fail(server: SharedDev, tmp_path: Path) -> None:
    await server.engine.control(mode="status", status=400, match="bad")
    lines = [request("ok-1"), request("bad-2"), request("ok-3")]
    child = await submit(server, tmp_path, [*lines], "--errors", str(tmp_path / "err.jsonl"))
    assert await child.wait() == 2
    assert ids_in(tmp_path / "out.jsonl") == ["ok-1", "ok-3"]
    assert ids_in(tmp_path / "err.jsonl") == ["bad-2"]
    assert "completed: 3 requests, 2 completed, 1 failed" in child.stderr
    child.check_clean_exit()


async def test_a_bad_input_names_its_lines(server: SharedDev, tmp_path: Path) -> None:
    child = await submit(server, tmp_path, [request("a"), "nope", request("a")])
    assert await child.wait() == 1
    assert "line 2: This line is not parseable as valid JSON. (invalid_json_line)" in child.stderr
    assert "line 3: " in child.stderr
    assert not (tmp_path / "out.jsonl").exists()
    child.check_clean_exit()


async def test_ctrl_c_leaves_the_batch_running(server: SharedDev, tmp_path: Path) -> None:
    await server.engine.control(mode="hang")
    child = await submit(server, tmp_path, [*requests(2)])
    batch_id = (await child.said(BATCH_LINE))[1]
    await child.said(re.compile("in_progress"))
    child.interrupt_group()
    assert await child.wait() == 130
    assert f"stopped; the batch continues to run: everbatch status {batch_id}\n" in child.stderr
    child.check_clean_exit()
    assert (await server.client.batches.retrieve(batch_id)).status == "in_progress"
    await server.client.batches.cancel(batch_id)


async def test_the_commands_beside_it(server: SharedDev, tmp_path: Path) -> None:
    await server.engine.control(mode="hang", match="r-1")
    submitted = await submit(server, tmp_path, [*requests(2)])
    batch_id = (await submitted.said(BATCH_LINE))[1]
    await submitted.said(re.compile(r"in_progress .* 1/2"))

    listed = await server.command("list", "--status", "in_progress", "--limit", "1")
    assert await listed.wait() == 0
    assert listed.stdout.splitlines()[1].startswith(f"{batch_id}  in_progress  1/2 ")

    cancelled = await server.command("cancel", batch_id, "--wait", "--json")
    assert await cancelled.wait() == 0
    assert json.loads(cancelled.stdout)["status"] == "cancelled"
    assert await submitted.wait() == 1
    assert ids_in(tmp_path / "out.jsonl") == ["r-0"]
    assert "cancelled: 2 requests, 1 completed, 1 failed" in submitted.stderr

    results = await server.command("results", batch_id, "-o", "-", "--errors", str(tmp_path / "err.jsonl"))
    assert await results.wait() == 1
    assert results.stdout == (tmp_path / "out.jsonl").read_text()
    assert ids_in(tmp_path / "err.jsonl") == ["r-1"]


async def test_a_pipe_that_is_closed(server: SharedDev) -> None:
    command = f"{sys.executable} -m api.cli.main list --base-url {server.client.base_url} | true"
    child = await server.launcher.program("pipe", ["sh", "-c", command], {})
    assert await child.wait() == 0
    assert child.stderr == ""


async def test_a_table_comes_back_with_its_answers(server: SharedDev, tmp_path: Path) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("city\nParis\nŁódź\n", encoding="utf-8")
    prompt = ["--model", "fake", "--prompt", "What is {city}?"]
    child = await server.command("submit", str(source), *prompt, "-o", str(output))
    assert await child.wait() == 0, child.stderr
    header, *rows = output.read_text(encoding="utf-8").splitlines()
    assert header == "city,response,error"
    assert [row.split(",")[0] for row in rows] == ["Paris", "Łódź"]
    assert all(row.split(",")[1] for row in rows)
    child.check_clean_exit()
