"""Helpers that assert say what they saw, as tests do; and the S3 server that tests share."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.s3_server import S3Server, find_binary

pytest.register_assert_rewrite("tests.e2e.faults", "tests.store_contract")


def _server(folder: Path) -> S3Server:
    binary = find_binary()
    if binary is None:
        pytest.skip("no versitygw: `make test` builds one")
    server = S3Server(binary, folder)
    server.start()
    return server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    """One that keeps running."""
    server = _server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture
def s3_folder(tmp_path: Path) -> Path:
    """Where a server of the test's own keeps its objects."""
    return tmp_path / "s3"


@pytest.fixture
def own_s3_server(s3_folder: Path) -> Generator[S3Server]:
    """One to be killed and started again."""
    server = _server(s3_folder)
    yield server
    server.kill()
