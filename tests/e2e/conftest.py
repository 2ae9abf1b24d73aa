"""One Temporal process for the session; for each test a folder, a task queue and an engine of its own."""

from __future__ import annotations

import io
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from activities.settings import Settings
from api.temporal_binary import Progress, locate_temporal
from tests.e2e.processes import Launcher, launcher


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
