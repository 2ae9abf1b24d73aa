"""Finds the Temporal binary for the embedded server, or downloads or builds it.

``python -m api.dev.temporal_binary`` prints its path.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from activities.settings import Settings

CLI_VERSION = "1.5.1"
"""The last release that ``go install`` accepts: the go.mod files of later ones contain a ``replace`` directive."""

GO_PACKAGE = f"github.com/temporalio/cli/cmd/temporal@v{CLI_VERSION}"
UNKNOWN_VERSION = "unknown"

_SERVER_VERSION = re.compile(r"\bServer (\d+\.\d+\.\d+[^\s,)]*)")
_DOWNLOAD_STALL_SECONDS = 10.0
_PLAIN_LINE_SECONDS = 10.0

# The SDK downloads the binary only as part of starting a server, so the script starts and stops one. It runs in its own
# process because the SDK sets no time limit: killing that process is how a hanging connection is ended. It exits with
# `os._exit` because the SDK's threads may still run, and a normal exit would then crash with a dump instead of
# reporting the reason.
_DOWNLOAD_SCRIPT = """
import asyncio, os, sys
from temporalio.testing import WorkflowEnvironment

async def main(version, folder):
    server = await WorkflowEnvironment.start_local(dev_server_download_version=version, download_dest_dir=folder)
    await server.shutdown()

try:
    asyncio.run(main(*sys.argv[1:]))
except Exception as error:
    print(str(error).rsplit(": ", 1)[-1], flush=True)
    os._exit(1)
os._exit(0)
"""


class EmbeddedTemporalError(Exception):
    """The embedded Temporal server cannot be installed or run; the message is one line for the user."""


@dataclass(frozen=True)
class TemporalBinary:
    path: Path
    server_version: str
    """Version of the included server, for example ``1.29.1``; ``UNKNOWN_VERSION`` if the binary does not report it."""


class Progress:
    """Shows progress: on a terminal, one line that is redrawn; otherwise, a plain line every ten seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = False
        self._last_plain = time.monotonic()

    def say(self, text: str) -> None:
        self.clear()
        self._out.write(f"{text}\n")
        self._out.flush()
        self._last_plain = time.monotonic()

    def tick(self, text: str) -> None:
        if self._out.isatty():
            self._out.write(f"\r\x1b[K{text}")
            self._out.flush()
            self._live = True
        elif time.monotonic() - self._last_plain >= _PLAIN_LINE_SECONDS:
            self.say(text)

    def clear(self) -> None:
        if self._live:
            self._out.write("\r\x1b[K")
            self._live = False


def cached_path() -> Path:
    """Return the path at which Everbatch keeps the binary that it downloaded or built."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "everbatch" / f"temporal-{CLI_VERSION}" / "temporal"


def locate_temporal(configured: str, progress: Progress) -> TemporalBinary | None:
    """Find an installed binary: at the configured path, as ``temporal`` on PATH, or in Everbatch's cache.

    Raises:
        EmbeddedTemporalError: a path is configured, but it cannot be executed.
    """
    if configured:
        path = Path(configured).expanduser().absolute()
        try:
            return _examine(path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise EmbeddedTemporalError(f"EVERBATCH_TEMPORAL_CLI: cannot run {path}: {reason}") from error
    on_path = shutil.which("temporal")
    for path in (Path(on_path).absolute() if on_path else None, cached_path()):
        if path is None or not path.exists():
            continue
        try:
            return _examine(path)
        except OSError as error:
            progress.say(f"Skipping {path}, which does not run: {error.strerror or error}")
    return None


def find_temporal(configured: str, out: TextIO) -> TemporalBinary:
    """Find the Temporal binary. If there is none, download it, or build it with Go if the download fails.

    This blocks, for several minutes during a build. Progress is written to ``out``.

    Raises:
        EmbeddedTemporalError: there is no binary, and it could not be downloaded or built.
    """
    progress = Progress(out)
    if found := locate_temporal(configured, progress):
        return found
    target = cached_path()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _cache_lock(target.parent, progress):
            # Another process may have installed it while this one waited for the lock.
            if not target.exists():
                _make(target, progress)
        return _examine(target)
    except OSError as error:
        raise EmbeddedTemporalError(
            f"cannot write the Temporal binary to {target}: {error.strerror or error}"
        ) from error


def _examine(path: Path) -> TemporalBinary:
    try:
        answer = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except subprocess.TimeoutExpired as error:
        raise OSError("it does not respond to --version") from error
    match = _SERVER_VERSION.search(answer.stdout.decode(errors="replace"))
    return TemporalBinary(path, match[1] if match else UNKNOWN_VERSION)


@contextlib.contextmanager
def _cache_lock(folder: Path, progress: Progress) -> Generator[None]:
    """Hold the cache's lock, so that one process installs the binary and the others then find it."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("Another process is getting the Temporal binary; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(target: Path, progress: Progress) -> None:
    """Download or build in a temporary folder and rename, so that a kill leaves no incomplete file at ``target``."""
    for left_over in target.parent.glob("making-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=target.parent, ignore_cleanup_errors=True) as folder:
        made, problem = _download(Path(folder), progress)
        if made is None and (go := shutil.which("go")):
            progress.say(
                f"No Temporal binary was found and the download of v{CLI_VERSION} failed ({problem}). Building it with "
                f"Go into {target.parent}. This happens once and takes 2 to 4 minutes."
            )
            made, problem = _build(go, Path(folder), progress)
        elif made is None:
            problem = f"the download failed ({problem}) and Go is not installed"
        if made is None:
            raise EmbeddedTemporalError(
                f"No Temporal binary was found, and it could not be downloaded or built: {problem}. "
                "Install the Temporal CLI so that `temporal` is on PATH, or set EVERBATCH_TEMPORAL_CLI to its "
                "path, or install Go 1.25 or newer."
            )
        os.replace(made, target)
    progress.say(f"Temporal binary ready: {target}")


def _download(folder: Path, progress: Progress) -> tuple[Path | None, str]:
    """Download with the SDK, and give up when no byte has arrived for ten seconds. Return the file or the reason."""
    made = folder / f"temporal-v{CLI_VERSION}"
    arriving = folder / f"{made.name}.downloading"
    last_size, last_change = -1, time.monotonic()

    def stalled(elapsed: float) -> bool:
        nonlocal last_size, last_change
        size = next((path.stat().st_size for path in (made, arriving) if path.exists()), -1)
        if size != last_size:
            last_size, last_change = size, time.monotonic()
        progress.tick(f"Downloading Temporal v{CLI_VERSION} … {max(size, 0) / 1e6:.0f} MB, {elapsed:.0f} s")
        return time.monotonic() - last_change > _DOWNLOAD_STALL_SECONDS

    command = [sys.executable, "-c", _DOWNLOAD_SCRIPT, f"v{CLI_VERSION}", str(folder)]
    code, output = _run(command, dict(os.environ), stalled)
    progress.clear()
    if made.exists():
        return made, ""
    return None, "no answer" if code is None else output


def _build(go: str, folder: Path, progress: Progress) -> tuple[Path | None, str]:
    """Build with Go. Return the file, or the reason why the build failed."""

    def report(elapsed: float) -> bool:
        progress.tick(f"Building Temporal v{CLI_VERSION} … {elapsed:.0f} s")
        return False

    code, output = _run([go, "install", GO_PACKAGE], {**os.environ, "GOBIN": str(folder)}, report)
    progress.clear()
    made = folder / "temporal"
    if code == 0 and made.exists():
        return made, ""
    return None, f"`go install {GO_PACKAGE}` failed: {output or f'exit status {code}'}"


def _run(command: list[str], env: dict[str, str], give_up: Callable[[float], bool]) -> tuple[int | None, str]:
    """Run a command, and call ``give_up`` several times a second with the elapsed seconds; kill it if that is true.

    Returns the exit status, or ``None`` if the command was killed, and the last line of its output.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        # The command gets its own process group, so that killing the group also kills its child processes.
        child = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = child.wait(timeout=0.2)
                    break
                if give_up(time.monotonic() - started):
                    return None, ""
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").split("\n")
    return code, next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def main() -> int:
    try:
        binary = find_temporal(Settings.model_validate({}).temporal_cli, sys.stderr)
    except EmbeddedTemporalError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{binary.path} (server {binary.server_version})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
