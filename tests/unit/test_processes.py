"""How processes start and end, and what they say of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from activities.settings import Settings
from activities.temporal import connection
from activities.temporal.connection import connect, when_there
from api.cli import main as cli
from api.http.server import PortTakenError, listen, listen_on
from api.processes import run as processes
from api.processes.run import StartError
from api.processes.setup import run_promote
from workflows.contract import upstream_task_queue


async def test_when_a_part_fails_the_others_end_well_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = asyncio.Event()
    ended: list[str] = []

    async def fails() -> None:
        raise StartError("first")

    async def drains(error: Exception | None) -> None:
        await stop.wait()
        await asyncio.sleep(0.01)
        ended.append("drained")
        if error:
            raise error

    with pytest.raises(StartError, match="first"):
        await processes._all_until_stop(stop, drains(RuntimeError("second")), fails(), drains(None))  # pyright: ignore[reportPrivateUsage]
    assert ended == ["drained", "drained"]


async def test_each_new_reason_why_temporal_is_not_there_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "CONNECT_RETRY_SECONDS", 0.0)
    answers: list[Exception | str] = [
        *(RuntimeError("no\n route"), RuntimeError("no\n route"), RuntimeError("bad key" + "!" * 1000)),
        "there",
    ]

    async def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with caplog.at_level(logging.WARNING, "everbatch"):
        assert await when_there(ask, asyncio.Event()) == "there"
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert said == ["no route", ("bad key" + "!" * 1000)[: connection.REASON_LENGTH], ""]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "bad host:1"])
async def test_the_state_of_temporal_is_for_the_log_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    ended: list[str] = []

    async def serve(*_: object) -> None:
        while not caplog.records:  # noqa: ASYNC110 - a log line sets no event
            await asyncio.sleep(0.01)
        ended.append("served")

    async def lazily(**_: object) -> Any:
        return await connect(address, lazy=True)

    monkeypatch.setenv("TEMPORAL_ADDRESS", address)
    monkeypatch.setattr(processes, "_serve_api", serve)
    monkeypatch.setattr(processes, "connect", lazily)
    settings = Settings.model_validate({"upstream_url": "http://127.0.0.1:1/v1"})
    with caplog.at_level(logging.WARNING, "everbatch"):
        await processes.run_api(settings, "127.0.0.1", 0)
    assert ended == ["served"]
    assert address in caplog.text
    await asyncio.sleep(0.05)
    assert not any("_log_temporal_state" in repr(task) for task in asyncio.all_tasks())


STARTS: list[Callable[[Settings], Awaitable[None]]] = [
    lambda settings: processes.run_api(settings, "127.0.0.1", 0),
    lambda settings: processes.run_worker(settings),
]


@pytest.mark.parametrize("start", STARTS, ids=["api", "worker"])
async def test_a_store_that_is_not_possible_is_refused(start: Callable[[Settings], Awaitable[None]]) -> None:
    settings = Settings.model_validate({"upstream_url": "http://127.0.0.1:1/v1", "store": "s3://x"})
    with pytest.raises(StartError, match="EVERBATCH_STORE"):
        await start(settings)


async def test_a_worker_says_that_an_address_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "bad host:1")
    settings = Settings.model_validate({"upstream_url": "http://127.0.0.1:1/v1", "store": str(tmp_path)})
    with pytest.raises(StartError, match="TEMPORAL_ADDRESS=bad host:1"):
        await processes.run_worker(settings)


async def test_promote_says_that_an_address_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "bad host:1")
    with pytest.raises(StartError, match="TEMPORAL_ADDRESS=bad host:1"):
        await run_promote(Settings.model_validate({"deployment": "d"}), None, force=False)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"EVERBATCH_WEBHOOKS_FILE": "missing.toml"},
            "EVERBATCH_WEBHOOKS_FILE=missing.toml: No such file or directory",
        ),
        ({"EVERBATCH_CODEC_ADDRESS": "127.0.0.1:1"}, "EVERBATCH_CODEC_ADDRESS needs EVERBATCH_PAYLOAD_KEY"),
        ({"EVERBATCH_METRICS_ADDRESS": "foo"}, "EVERBATCH_METRICS_ADDRESS: 'foo' is not host:port"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name(variables: dict[str, str], said: str) -> None:
    result = CliRunner().invoke(cli.main, ["worker", "--processes", "2"], env=variables)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {said}")
    assert result.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_said_with_what_names_it() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=r"is already in use; choose another with --port$"):
            listen("127.0.0.1", port)
        with pytest.raises(
            PortTakenError, match=r"^EVERBATCH_X=127.0.0.1:\d+: port \d+ on 127.0.0.1 is already in use$"
        ):
            listen_on(f"127.0.0.1:{port}", "EVERBATCH_X")


@pytest.mark.parametrize("arguments", [["serve", "--port", "65536"], ["dev", "--ui-port", "-1"]])
def test_a_port_that_cannot_be(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert "is not in the range 0<=x<=65535" in result.stderr


def test_a_bug_keeps_its_traceback() -> None:
    async def start() -> None:
        raise error

    error: Exception = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        cli.run(Settings.model_validate({}), start)
    error = StartError("no port")
    with pytest.raises(click.ClickException, match="no port"):
        cli.run(Settings.model_validate({}), start)


def test_an_upstream_of_the_file_is_not_oneself(tmp_path: Path) -> None:
    path = tmp_path / "upstreams.toml"
    path.write_text(
        '[[upstream]]\nname = "a"\nurl = "http://10.0.0.1:8000"\n'
        '[[upstream]]\nname = "b"\nurls = ["http://10.0.0.2:1", "http://localhost:8000/v1"]\n'
    )
    settings = Settings.model_validate({"upstreams": str(path), "upstream_url": ""})
    assert [upstream.name for upstream in processes.check_upstreams(settings, "127.0.0.1", 8001)] == ["a", "b"]
    with pytest.raises(StartError, match="http://localhost:8000/v1 is this server's own address"):
        processes.check_upstreams(settings, "127.0.0.1", 8000)
    path.write_text("[[upstream]]\n")
    with pytest.raises(StartError, match="name: is required"):
        processes.check_upstreams(settings, "127.0.0.1", 8000)


def test_an_upstream_has_a_task_queue_of_its_own() -> None:
    assert upstream_task_queue("everbatch-inference", "gpu") == "everbatch-inference-gpu"
    # One that is called so takes over what the single upstream of the settings has left.
    assert upstream_task_queue("everbatch-inference", "default") == "everbatch-inference"
