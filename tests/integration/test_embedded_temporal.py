"""The embedded Temporal server with the real binary: it keeps its state, its ports and its manners."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from activities.settings import Settings
from activities.temporal.namespace import prepare_namespace
from api.dev.temporal_binary import EmbeddedTemporalError, Progress, TemporalBinary, locate_temporal
from api.dev.temporal_server import EmbeddedTemporal
from workflows.contract import BATCH_WORKFLOW, STATUS_ATTRIBUTE, TENANT_ATTRIBUTE

PARENT = """
import asyncio, sys
from pathlib import Path
from api.dev.temporal_binary import TemporalBinary
from api.dev.temporal_server import EmbeddedTemporal

async def main(path, version, folder):
    async with EmbeddedTemporal(TemporalBinary(Path(path), version), Path(folder), 0, 0) as server:
        print(server.port, flush=True)
        await server.wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def binary() -> TemporalBinary:
    found = locate_temporal(Settings.model_validate({}).temporal_cli, Progress(io.StringIO()))
    if found is None:
        pytest.skip("no Temporal binary: `make test` gets one")
    return found


@pytest.fixture(scope="module")
async def server(
    binary: TemporalBinary, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[tuple[EmbeddedTemporal, Path]]:
    """One that keeps running, and its folder."""
    folder = tmp_path_factory.mktemp("kept")
    async with EmbeddedTemporal(binary, folder, 0, 0) as server:
        yield server, folder


def processes_of(folder: Path) -> list[str]:
    """Everything that runs for the server of this folder: server, keeper, watcher."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if str(folder / "temporal.db") in line]


async def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.05)


async def test_state_survives_a_restart_and_stop_leaves_no_process(binary: TemporalBinary, tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    async with EmbeddedTemporal(binary, folder, 0, 0) as server:
        client = await Client.connect(server.address)
        await client.start_workflow(BATCH_WORKFLOW, id="survivor", task_queue="nobody")
        assert processes_of(folder)
    assert processes_of(folder) == []
    assert (folder / "temporal.version").read_text() == f"{binary.server_version}\n"

    async with EmbeddedTemporal(binary, folder, server.port, server.ui_port) as again:
        assert again.address == server.address
        client = await Client.connect(again.address)
        description = await client.get_workflow_handle("survivor").describe()
        assert description.status == WorkflowExecutionStatus.RUNNING


async def test_its_folder_is_for_its_owner_alone(binary: TemporalBinary, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        async with EmbeddedTemporal(binary, folder, 0, 0):
            modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}, modes


async def test_the_ui_answers(server: tuple[EmbeddedTemporal, Path]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server[0].ui_port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert b"200 OK" in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_second_server_on_the_folder_is_refused(
    binary: TemporalBinary, server: tuple[EmbeddedTemporal, Path]
) -> None:
    folder = server[1]
    with pytest.raises(EmbeddedTemporalError, match=f"process {os.getpid()}.*{folder}"):
        await EmbeddedTemporal(binary, folder, 0, 0).start()


async def test_two_servers_run_side_by_side_but_not_on_one_port(
    binary: TemporalBinary, server: tuple[EmbeddedTemporal, Path], tmp_path: Path
) -> None:
    first = server[0]
    async with EmbeddedTemporal(binary, tmp_path / "b", 0, 0) as second:
        assert len({first.port, first.ui_port, second.port, second.ui_port}) == 4
    with pytest.raises(EmbeddedTemporalError, match=f"port {first.port} .*--temporal-port"):
        await EmbeddedTemporal(binary, tmp_path / "c", first.port, 0).start()


async def test_a_server_that_dies_is_noticed(binary: TemporalBinary, tmp_path: Path) -> None:
    async with EmbeddedTemporal(binary, tmp_path, 0, 0) as server:
        # The keeper has the same words in its arguments, but begins with the shell.
        pid = next(line.split()[0] for line in processes_of(tmp_path) if line.split()[1] == str(binary.path))
        os.kill(int(pid), signal.SIGKILL)
        assert await asyncio.wait_for(server.wait(), 10) == 128 + signal.SIGKILL
        await until(lambda: not processes_of(tmp_path), 5)


async def test_the_server_ends_with_its_parent(binary: TemporalBinary, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(binary.path), binary.server_version, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    port = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await until(lambda: not processes_of(tmp_path), 15)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_restart_right_after_a_kill_waits_for_the_old_server(binary: TemporalBinary, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(binary.path), binary.server_version, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    port = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    assert processes_of(tmp_path)  # the old server is still there
    async with EmbeddedTemporal(binary, tmp_path, port, 0) as server:
        assert server.port == port


async def test_prepare_namespace_can_be_repeated_and_raced(server: tuple[EmbeddedTemporal, Path]) -> None:
    client = await Client.connect(server[0].address)
    await asyncio.gather(*(prepare_namespace(client) for _ in range(3)))
    await client.start_workflow(
        BATCH_WORKFLOW,
        id="marked",
        task_queue="nobody",
        search_attributes=TypedSearchAttributes(
            [SearchAttributePair(TENANT_ATTRIBUTE, "t"), SearchAttributePair(STATUS_ATTRIBUTE, "validating")]
        ),
    )
    for _ in range(2):
        await prepare_namespace(client, retention=timedelta(days=30))
    namespace = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
    assert namespace.config.workflow_execution_retention_ttl.ToTimedelta() == timedelta(days=30)
