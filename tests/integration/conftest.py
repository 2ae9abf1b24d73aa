"""One embedded Temporal server for the session; for each test a store, a task queue and an engine of its own."""

from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from activities.settings import Settings
from activities.temporal.connection import connect
from activities.temporal.namespace import prepare_namespace
from api.dev.temporal_binary import Progress, locate_temporal
from api.dev.temporal_server import EmbeddedTemporal
from tests.integration.stack import Stack

MakeStack = Callable[..., Awaitable[Stack]]


@contextlib.asynccontextmanager
async def _temporal(folder: Path) -> AsyncGenerator[Client]:
    binary = locate_temporal(Settings.model_validate({}).temporal_cli, Progress(io.StringIO()))
    if binary is None:
        pytest.skip("no Temporal binary: `make test` gets one")
    async with EmbeddedTemporal(binary, folder, 0, 0) as server:
        client = await connect(server.address)
        await prepare_namespace(client)
        yield client


@pytest.fixture(scope="session")
async def temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Client]:
    async with _temporal(tmp_path_factory.mktemp("temporal")) as client:
        yield client


@pytest.fixture
async def empty_temporal(tmp_path: Path) -> AsyncGenerator[Client]:
    """One that knows of no batch, as after its retention or the loss of its database."""
    async with _temporal(tmp_path / "temporal") as client:
        yield client


@pytest.fixture
async def stack(temporal: Client, tmp_path: Path) -> AsyncGenerator[MakeStack]:
    """Makes a running stack: ``await stack(max_attempts=2)``; ``worker=False`` leaves the worker out."""
    async with contextlib.AsyncExitStack() as exits:

        async def make(*, worker: bool = True, latency: float = 0.0, **settings: Any) -> Stack:
            made = await exits.enter_async_context(
                Stack.open(temporal, tmp_path / uuid.uuid4().hex, latency=latency, **settings)
            )
            if worker:
                await made.start_worker()
            return made

        yield make
