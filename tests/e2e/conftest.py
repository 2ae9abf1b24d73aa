"""One Temporal process for the session; for each test a folder, a task queue and an engine of its own."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from activities.settings import Settings
from api.dev.temporal_binary import Progress, locate_temporal
from tests.e2e.faults import COMMIT_INTERVAL, HEARTBEAT_TIMEOUT, Size, World, make_world
from tests.e2e.faults_table import Matrix
from tests.e2e.processes import Launcher, launcher
from tests.e2e.shared_dev import SharedDev, shared_dev

MakeWorld = Callable[..., Awaitable[World]]

on_s3_too = pytest.mark.parametrize(
    "world", ["folder", pytest.param("s3", marks=pytest.mark.slow_faults)], indirect=True
)
"""For a test whose fault touches what is committed: in a normal run with the folder alone."""


@pytest.fixture(scope="session", autouse=True)
def _binary() -> None:
    if locate_temporal(Settings.model_validate({}).temporal_cli, Progress(io.StringIO())) is None:
        pytest.skip("no Temporal binary: `make test` gets one")


@pytest.fixture(scope="session")
async def temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str]:
    """Address of a Temporal server that lasts."""
    async with launcher(tmp_path_factory.mktemp("temporal")) as processes:
        yield (await processes.temporal())[1]


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncGenerator[Launcher]:
    """A launcher of its own world: nothing is shared with other tests."""
    async with launcher(tmp_path / "everbatch", EVERBATCH_TASK_QUEUE=f"e2e-{uuid.uuid4().hex}") as processes:
        yield processes


@pytest.fixture
def cluster(processes: Launcher, temporal: str) -> Launcher:
    """A launcher whose processes find the session's Temporal."""
    processes.env["TEMPORAL_ADDRESS"] = temporal
    return processes


@pytest.fixture(scope="session")
async def _dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[SharedDev]:
    async with shared_dev(tmp_path_factory.mktemp("dev")) as shared:
        yield shared


@pytest.fixture
async def server(_dev: SharedDev) -> SharedDev:
    """``everbatch dev`` with what other tests have left in it, and an engine that does as it should."""
    await _dev.engine.control()
    await _dev.engine.reset_counters()
    return _dev


@pytest.fixture(scope="session")
def _matrix(request: pytest.FixtureRequest) -> Generator[Matrix]:
    """The rows of the fault matrix; the table is written where ``EVERBATCH_WRITE_FAULTS=1`` asks for it."""
    cache = request.config.cache
    assert cache
    matrix = Matrix(cache)
    yield matrix
    if os.environ.get("EVERBATCH_WRITE_FAULTS") == "1":
        matrix.write(HEARTBEAT_TIMEOUT, COMMIT_INTERVAL)


@pytest.fixture
def matrix(_matrix: Matrix, request: pytest.FixtureRequest) -> Matrix:
    _matrix.begin(request.node.nodeid)
    return _matrix


@pytest.fixture
async def world(
    cluster: Launcher, tmp_path: Path, matrix: Matrix, request: pytest.FixtureRequest
) -> AsyncGenerator[MakeWorld]:
    """Makes a running world: ``await world(SINGLE, workers=2)``, see :func:`tests.e2e.faults.make_world`.

    Its parameter may be ``s3``: a store on a server of the test's own.
    """
    server = request.getfixturevalue("own_s3_server") if getattr(request, "param", "") == "s3" else None
    async with contextlib.AsyncExitStack() as exits:

        async def make(size: Size, **options: Any) -> World:
            return await exits.enter_async_context(make_world(cluster, tmp_path, matrix, size, s3=server, **options))

        yield make
