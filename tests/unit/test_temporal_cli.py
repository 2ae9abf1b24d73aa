"""Finding the Temporal binary and guarding its data folder, with shell scripts for binaries."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from api.dev.temporal_binary import (
    UNKNOWN_VERSION,
    EmbeddedTemporalError,
    Progress,
    TemporalBinary,
    cached_path,
    find_temporal,
    locate_temporal,
)
from api.dev.temporal_data import TemporalData
from api.dev.temporal_server import EmbeddedTemporal


def fake_binary(path: Path, says: str = "temporal version 1.5.1 (Server 1.29.1, UI 2.42.1)", then: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{says}'; exit; fi\n{then}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty PATH and an empty cache."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def locate(configured: str = "") -> TemporalBinary | None:
    return locate_temporal(configured, Progress(io.StringIO()))


def test_the_configured_binary_comes_before_path_before_the_cache(machine: Path) -> None:
    assert locate() is None
    in_cache = fake_binary(cached_path())
    assert locate() == TemporalBinary(in_cache, "1.29.1")
    on_path = fake_binary(machine / "bin/temporal", "temporal version 1.1.0 (Server 1.25.0, UI 2.30.0)")
    assert locate() == TemporalBinary(on_path, "1.25.0")
    configured = fake_binary(machine / "mine", "temporal version 0.0.0-DEV (Server 1.31.0-151.0, UI 2.42.1)")
    assert locate(str(configured)) == TemporalBinary(configured, "1.31.0-151.0")


def test_a_binary_that_hides_its_version_is_used(machine: Path) -> None:
    on_path = fake_binary(machine / "bin/temporal", "a temporal of my own")
    assert locate() == TemporalBinary(on_path, UNKNOWN_VERSION)


def test_a_broken_binary_on_path_is_passed_over(machine: Path) -> None:
    (machine / "bin/temporal").write_bytes(b"\x7fELF of another machine")
    (machine / "bin/temporal").chmod(0o755)
    in_cache = fake_binary(cached_path())
    out = io.StringIO()
    assert find_temporal("", out).path == in_cache
    assert str(machine / "bin/temporal") in out.getvalue()


@pytest.mark.parametrize("exists", [False, True])
def test_a_configured_path_that_does_not_run_is_an_error(machine: Path, exists: bool) -> None:
    fake_binary(machine / "bin/temporal")
    if exists:
        (machine / "mine").write_text("not a program")
    with pytest.raises(EmbeddedTemporalError, match=f"EVERBATCH_TEMPORAL_CLI: cannot run {machine / 'mine'}"):
        locate(str(machine / "mine"))


@pytest.fixture
def no_download(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The SDK's download runs in the interpreter; one that fails stands for a machine without network."""
    python = machine / "python"
    python.write_text("#!/bin/sh\necho no route to host\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return machine


def test_without_network_it_is_built_with_go(no_download: Path) -> None:
    tools = no_download / "bin"
    for tool in ("cp", "chmod", "cat"):
        (tools / tool).symlink_to(f"/bin/{tool}")
    made = fake_binary(no_download / "made")
    fake_binary(tools / "go", then=f'echo "$*" > {no_download}/asked; cp {made} "$GOBIN/temporal"')
    leftover = cached_path().parent / "making-killed"
    leftover.mkdir(parents=True)
    out = io.StringIO()
    assert find_temporal("", out) == TemporalBinary(cached_path(), "1.29.1")
    assert (no_download / "asked").read_text() == "install github.com/temporalio/cli/cmd/temporal@v1.5.1\n"
    assert "failed (no route to host). Building it with Go" in out.getvalue()
    assert sorted(path.name for path in cached_path().parent.iterdir()) == ["lock", "temporal"]


def test_a_failed_build_says_what_to_do(no_download: Path) -> None:
    fake_binary(no_download / "bin/go", then="echo 'go: needs go 1.25' >&2; exit 1")
    with pytest.raises(EmbeddedTemporalError, match=r"needs go 1\.25.*EVERBATCH_TEMPORAL_CLI"):
        find_temporal("", io.StringIO())
    assert not cached_path().exists()


def test_without_anything_the_error_says_what_to_install(no_download: Path) -> None:
    with pytest.raises(EmbeddedTemporalError, match=r"no route to host.*Go is not installed.*Install the Temporal CLI"):
        find_temporal("", io.StringIO())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_renews_one_line_on_a_terminal_only() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for out in (terminal, pipe):
        progress = Progress(out)
        progress.tick("1 s")
        progress.tick("2 s")
        progress.say("done")
    assert terminal.getvalue() == "\r\x1b[K1 s\r\x1b[K2 s\r\x1b[Kdone\n"
    assert pipe.getvalue() == "done\n"


BINARY = TemporalBinary(Path("/somewhere/temporal"), "1.29.1")


def database_files(data: TemporalData) -> list[Path]:
    return [Path(f"{data.database}{suffix}") for suffix in ("", "-wal", "-shm")]


def test_a_database_of_an_unfinished_first_start_is_made_again(tmp_path: Path) -> None:
    data = TemporalData(tmp_path)
    for path in database_files(data):
        path.touch()
    data.prepare(BINARY)
    assert not any(path.exists() for path in database_files(data))


def test_a_version_mark_without_database_does_not_vouch_for_the_next_one(tmp_path: Path) -> None:
    data = TemporalData(tmp_path)
    data.mark_healthy(BINARY)
    data.prepare(BINARY)
    data.database.touch()  # the server was killed while it made this one
    data.prepare(BINARY)
    assert not data.database.exists()


def test_the_database_of_a_healthy_server_stays(tmp_path: Path) -> None:
    data = TemporalData(tmp_path)
    data.database.touch()
    data.mark_healthy(BINARY)
    data.prepare(BINARY)
    assert data.database.exists()


async def test_a_database_of_another_version_is_refused_and_kept(tmp_path: Path) -> None:
    data = TemporalData(tmp_path)
    data.database.write_bytes(b"precious")
    data.mark_healthy(BINARY)
    newer = TemporalBinary(Path("/new/temporal"), "1.31.2")
    server = EmbeddedTemporal(newer, tmp_path, 0, 0)
    with pytest.raises(
        EmbeddedTemporalError, match=r"created by Temporal server 1\.29\.1, but /new/temporal is .*1\.31\.2"
    ):
        await server.start()
    assert data.database.read_bytes() == b"precious"
    os.close(data.lock())  # the refusal gave the folder back


def test_an_overlong_log_is_cut(tmp_path: Path) -> None:
    data = TemporalData(tmp_path)
    data.log.write_bytes(b"x" * 1000)
    data.prepare(BINARY)
    assert data.log.stat().st_size == 1000
    os.truncate(data.log, 11 * 1024 * 1024)
    data.prepare(BINARY)
    assert data.log.stat().st_size == 0


def test_a_locked_folder_names_itself_and_its_owner(tmp_path: Path) -> None:
    held = TemporalData(tmp_path).lock()
    with pytest.raises(EmbeddedTemporalError, match=f"process {os.getpid()}.*{tmp_path}"):
        TemporalData(tmp_path).lock()
    os.close(held)
    os.close(TemporalData(tmp_path).lock())


def test_the_lock_waits_for_the_server_of_a_dead_owner(tmp_path: Path) -> None:
    held = TemporalData(tmp_path).lock()
    gone = subprocess.Popen(["true"])
    gone.wait()
    os.ftruncate(held, 0)
    os.pwrite(held, str(gone.pid).encode(), 0)
    # What still holds the lock is a server on its way out, as after `kill -9` of its parent.
    server = subprocess.Popen(["sleep", "0.5"], pass_fds=(held,))
    os.close(held)
    os.close(TemporalData(tmp_path).lock())
    assert server.wait() == 0


def test_a_data_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedTemporalError, match="cannot use the data directory"):
        TemporalData(tmp_path / "file").lock()


@pytest.mark.parametrize(("option", "ui"), [("--temporal-port", False), ("--ui-port", True)])
async def test_a_taken_port_names_itself_and_the_option(tmp_path: Path, option: str, ui: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = EmbeddedTemporal(BINARY, tmp_path, 0 if ui else port, port if ui else 0)
        with pytest.raises(EmbeddedTemporalError, match=f"port {port} .*{option}"):
            await server.start()


async def test_a_server_that_dies_at_once_shows_its_last_words(tmp_path: Path) -> None:
    path = fake_binary(tmp_path / "temporal", then="echo 'unknown flag: --sqlite-pragma' >&2; exit 3")
    with pytest.raises(EmbeddedTemporalError, match=r"exit status 3.*unknown flag: --sqlite-pragma"):
        await EmbeddedTemporal(TemporalBinary(path, "1.20.0"), tmp_path / "data", 0, 0).start()
    assert not (tmp_path / "data/temporal.version").exists()
