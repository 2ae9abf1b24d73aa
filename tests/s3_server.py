"""A real S3 server for tests: versitygw over a folder.

``python -m tests.s3_server`` prints the path of its binary, and builds it with Go first where there is none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

VERSION: Final = "1.7.0"
GO_PACKAGE: Final = f"github.com/versity/versitygw/cmd/versitygw@v{VERSION}"
START_SECONDS: Final = 20

ACCESS_KEY: Final = "test-access-key"
SECRET_KEY: Final = "test-secret-key-of-the-store"
BUCKET: Final = "everbatch-test"


def cached_path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "everbatch" / f"versitygw-{VERSION}" / "versitygw"


def find_binary() -> Path | None:
    """On PATH, where Go puts programs, or in Everbatch's cache."""
    on_path = shutil.which("versitygw")
    places = [Path(on_path)] if on_path else []
    return next((path for path in [*places, Path.home() / "go/bin/versitygw", cached_path()] if path.exists()), None)


def build() -> Path:
    """Build it into the cache, once for however many ask at a time."""
    target = cached_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            sys.stderr.write(f"Building versitygw v{VERSION} for the tests, once only, usually within a minute.\n")
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                subprocess.run(["go", "install", GO_PACKAGE], env={**os.environ, "GOBIN": folder}, check=True)
                os.replace(f"{folder}/versitygw", target)
    return target


def _keeps_attributes(folder: Path) -> bool:
    """Whether the file system keeps them with its files, as the server does by itself."""
    try:
        os.setxattr(folder, "user.everbatch", b"")
    except OSError:
        return False
    return True


class S3Server:
    """One process, on a port that it keeps over restarts."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary = binary
        self.root = folder / "buckets"
        """Buckets are folders in here."""
        self._metadata = folder / "attributes"
        self._log = folder / "s3.log"
        for made in (self.root, self._metadata):
            made.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """For :class:`activities.settings.Settings`, but for the store's address."""
        return {
            "s3_endpoint": f"127.0.0.1:{self.port}",
            "s3_access_key": ACCESS_KEY,
            "s3_secret_key": SECRET_KEY,
            "s3_secure": "false",
        }

    @property
    def variables(self) -> dict[str, str]:
        """The same for a process."""
        return {f"EVERBATCH_{name.upper()}": value for name, value in self.settings.items()}

    def start(self) -> None:
        assert not self._process, "it is running"
        command = [self._binary, "--port", f"127.0.0.1:{self.port}", "--keep-alive", "--quiet", "posix"]
        if not _keeps_attributes(self.root):
            command += ["--sidecar", self._metadata]
        command += [self.root]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def kill(self) -> None:
        """As ``kill -9`` does."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


if __name__ == "__main__":
    sys.stdout.write(f"{find_binary() or build()}\n")
