"""Processes that start in any order, stop cleanly, and say in one line why they do not start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import Callable, Generator
from pathlib import Path

import httpx2
import openai
import pytest
from click.testing import CliRunner, Result
from temporalio.client import Client

from api.cli.main import main
from tests.e2e.engine_log import EngineLog
from tests.e2e.processes import API_LINE, WORKER_LINE, Child, Launcher, finished, gone, submit
from tests.e2e.restarts import left_behind, stopped
from tests.e2e.shared_dev import SharedDev
from tests.fakes.engine import Engine, EngineOptions
from tests.fakes.engine_process import EngineProcess
from tests.free_ports import free_ports
from tests.integration.stack import requests, until

NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture
def taken() -> Generator[str]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


async def check_stops(child: Child) -> None:
    """It has been told to: nothing is left of it, and nothing but its words is on the terminal."""
    assert await child.wait() == 0
    child.check_clean_exit()
    assert child.stderr == "" or "ERROR" not in child.stderr


# Which of the two signals it is makes a difference to none of them: the tests take turns.


async def test_serve_stops(cluster: Launcher) -> None:
    child, client = await cluster.serve(EVERBATCH_UPSTREAM_URL=NOWHERE)
    async with client:
        await client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
        family = child.family()
        child.send(signal.SIGTERM)  # while the client holds its connection
        await check_stops(child)
    await gone(family, 1)


async def test_an_idle_worker_stops(cluster: Launcher) -> None:
    child = await cluster.worker(EVERBATCH_UPSTREAM_URL=NOWHERE)
    family = child.family()
    child.send(signal.SIGINT)
    await check_stops(child)
    await gone(family, 1)


async def test_a_worker_that_waits_for_temporal_stops(processes: Launcher) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    child = await processes.start("worker", env={"TEMPORAL_ADDRESS": address, "EVERBATCH_UPSTREAM_URL": NOWHERE})
    await child.said(re.compile(f"waiting for Temporal at {address}"))
    child.send(signal.SIGTERM)
    await check_stops(child)


async def test_temporal_stops(processes: Launcher) -> None:
    child, _ = await processes.temporal()
    family = child.family()
    assert len(family) > 1
    child.send(signal.SIGINT)
    await check_stops(child)
    await gone(family, 1)


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
async def test_dev_stops(processes: Launcher, how: str) -> None:
    child, client = await processes.dev()
    async with client:
        assert [model.id async for model in client.models.list()] == ["echo"]
        family = child.family()
        assert len(family) > 1
        if how == "Ctrl-C":
            child.interrupt_group()
        else:
            child.send(signal.SIGTERM)
        await check_stops(child)
    await gone(family, 1)
    assert "No upstream is configured" in child.stdout


@pytest.mark.parametrize("command", ["worker --processes 2", "dev"])
async def test_a_second_signal_drops_what_is_in_flight(
    cluster: Launcher, processes: Launcher, tmp_path: Path, command: str
) -> None:
    log = EngineLog(tmp_path / "engine.log")
    async with EngineProcess(latency=60, log=log.path) as engine:
        env = {"EVERBATCH_UPSTREAM_URL": engine.url, "EVERBATCH_DRAIN_TIMEOUT": "100"}
        if command == "dev":
            del processes.env["TEMPORAL_ADDRESS"]
            child, client = await processes.dev(**env)
        else:
            child = await cluster.start(*command.split(), env=env)
            _, client = await cluster.serve(**env)
        async with client:
            await submit(client, requests(10))

            async def in_flight() -> bool:
                return log.read().count("recv") == 10

            await until(in_flight, "10 requests in flight", 60)
            family = child.family()
            child.interrupt_group()
            child.interrupt_group()  # so soon, it is the same
            await asyncio.sleep(2)
            assert child.running
            assert log.read().count("abort") == 0
            child.interrupt_group()
            await check_stops(child)

        async def dropped() -> bool:
            return log.read().count("abort") == 10

        await until(dropped, "the connections are closed")
    await gone(family, 1)


async def test_what_outlasts_the_drain_is_handed_back(cluster: Launcher, temporal: str, tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log")
    async with EngineProcess(latency=60, log=log.path) as engine:
        cluster.env |= {"EVERBATCH_UPSTREAM_URL": engine.url, "EVERBATCH_DRAIN_TIMEOUT": "1"}
        worker = await cluster.worker()
        _, client = await cluster.serve()
        async with client:
            batch_id = await submit(client, requests(10))

            async def in_flight() -> bool:
                return log.read().count("recv") == 10

            await until(in_flight, "10 requests in flight")
            assert await stopped(worker) < 8
        assert await left_behind(await Client.connect(temporal), batch_id, worker) == []


async def test_everything_may_start_before_temporal(processes: Launcher) -> None:
    port, ui_port = map(str, free_ports(2))
    engine = Engine(EngineOptions())
    url = f"http://127.0.0.1:{await engine.start()}/v1"
    processes.env |= {"TEMPORAL_ADDRESS": f"127.0.0.1:{port}", "EVERBATCH_UPSTREAM_URL": url}
    worker = await processes.start("worker")
    api, client = await processes.serve()
    async with client, httpx2.AsyncClient(base_url=str(client.base_url).removesuffix("/v1/")) as http:
        await worker.said(re.compile(f"waiting for Temporal at 127.0.0.1:{port}"))
        assert (await http.get("/health")).status_code == 200
        ready = await http.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["missing"] == [f"Temporal at 127.0.0.1:{port} does not answer"]
        file = await client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
        with pytest.raises(openai.InternalServerError) as caught:
            await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        assert caught.value.status_code == 503
        assert "Temporal" in caught.value.message
        assert 0 < float(caught.value.response.headers["retry-after"]) <= 60
        assert [batch.id async for batch in client.batches.list()] == []

        await processes.start("temporal", "--port", port, "--ui-port", ui_port)
        await worker.said(WORKER_LINE, 90)

        async def is_ready() -> bool:
            return (await http.get("/ready")).status_code == 200

        await until(is_ready, "ready", 90)
        result = await finished(client, await submit(client, requests(3)), 90)
        assert result.counts == (3, 3, 0)
    assert api.running
    assert worker.running
    await engine.close()


# What keeps a process from starting is one line


async def test_a_second_dev_on_the_data_folder(server: SharedDev) -> None:
    second = await server.launcher.start("dev", "--port", "0", "--temporal-port", "0", "--ui-port", "0")
    assert await second.wait(60) == 1
    (line,) = second.stderr.splitlines()
    assert line.startswith("Error: ")
    assert str(server.launcher.folder / "data") in line
    assert f"process {server.process.pid}" in line
    assert not API_LINE.search(second.stdout)
    await server.client.files.list()  # the first goes on


# The rest of these in this process: a start of Python costs two seconds


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name in os.environ:
        if name.startswith("EVERBATCH_") and name != "EVERBATCH_TEMPORAL_CLI":
            monkeypatch.delenv(name)
    monkeypatch.setenv("EVERBATCH_DATA_DIR", str(tmp_path))

    def run(*arguments: str, **env: str) -> Result:
        return CliRunner().invoke(main, arguments, env=env)

    return run


def check_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("serve", "EVERBATCH_MAX_IN_FLIGHT", "many"),
        ("serve", "EVERBATCH_MAX_ATTEMPTS", "0"),
        ("worker", "EVERBATCH_COMPLETION_WINDOWS", "tomorrow"),
        ("dev", "EVERBATCH_UPSTREAM_URL", "ftp://x"),
        ("temporal", "EVERBATCH_UNKNOWN_MODEL", "guess"),
        ("worker", "EVERBATCH_STORE", "gs://bucket"),
        ("dev", "EVERBATCH_TEMPORAL_CLI", "/nowhere/temporal"),
    ],
)
def test_a_bad_setting(run_here: Callable[..., Result], command: str, name: str, value: str) -> None:
    check_one_line(run_here(command, **{"EVERBATCH_UPSTREAM_URL": NOWHERE, name: value}), name)


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_no_inference_server_is_named(run_here: Callable[..., Result], command: str) -> None:
    check_one_line(run_here(command), "EVERBATCH_UPSTREAM_URL")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "0.0.0.0", socket.gethostname()])
def test_dev_may_not_be_its_own_inference_server(run_here: Callable[..., Result], host: str) -> None:
    result = run_here("dev", "--port", "8123", "--upstream-url", f"http://{host}:8123")
    check_one_line(result, "own address")


def test_its_own_address_is_no_inference_server(run_here: Callable[..., Result]) -> None:
    url = "http://localhost:8123/v1"
    check_one_line(run_here("serve", "--port", "8123", EVERBATCH_UPSTREAM_URL=url), url, "own address")


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_bad_file_of_upstreams(run_here: Callable[..., Result], tmp_path: Path, command: str) -> None:
    path = tmp_path / "upstreams.toml"
    path.write_text('[[upstream]]\nname = "a"\nurl = "http://127.0.0.1:9"\nkey = "sk-very-secret"\n')
    result = run_here(command, EVERBATCH_UPSTREAMS=str(path))
    check_one_line(result, f"{path}, line 4: upstream a: key: there is no such setting")
    assert "sk-very-secret" not in result.output


@pytest.mark.parametrize("option", ["--port", "--temporal-port", "--ui-port"])
def test_dev_on_a_taken_port(run_here: Callable[..., Result], taken: str, option: str) -> None:
    ports = {"--port": "0", "--temporal-port": "0", "--ui-port": "0", option: taken}
    check_one_line(run_here("dev", *(word for pair in ports.items() for word in pair)), f"port {taken}", option)
