"""The data directory of the embedded Temporal server: its lock, the version of its database, and its log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

from api.dev.temporal_binary import EmbeddedTemporalError, TemporalBinary

_LOG_LIMIT = 10 * 1024 * 1024
_DYING_SECONDS = 15.0


class TemporalData:
    """A directory with the lock, version record, database and log. All methods but ``lock`` require the lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.database = self.folder / "temporal.db"
        self.log = self.folder / "temporal.log"
        self._version = self.folder / "temporal.version"

    def lock(self) -> int:
        """Lock the folder and return the file descriptor of the lock, which lasts until its last copy is closed.

        If the owner is dead but its server has not ended yet, this blocks for up to 15 seconds.

        Raises:
            EmbeddedTemporalError: another server holds the lock, or the folder cannot be created or used.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # An existing folder, and the files in it, may be accessible to other users.
            self.folder.chmod(0o700)
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedTemporalError(f"cannot use the data directory {self.folder}: {error.strerror}") from error
        deadline = time.monotonic() + _DYING_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
                if _alive(owner) or time.monotonic() > deadline:
                    os.close(fd)
                    raise EmbeddedTemporalError(
                        f"another embedded Temporal server (process {owner or 'unknown'}) uses the data directory "
                        f"{self.folder}: stop it, or choose another directory with EVERBATCH_DATA_DIR"
                    ) from None
                time.sleep(0.1)
            else:
                os.ftruncate(fd, 0)
                os.pwrite(fd, str(os.getpid()).encode(), 0)
                return fd

    def prepare(self, binary: TemporalBinary) -> None:
        """Prepare the folder for a start: delete the remains of a first start that was killed, and empty a long log.

        Raises:
            EmbeddedTemporalError: another version of the server created the database.
        """
        made_by = self._version.read_text().strip() if self._version.exists() else ""
        if not made_by or not self.database.exists():
            # The server creates its tables only if there is no file, so an incomplete one would never be completed.
            self._version.unlink(missing_ok=True)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.database}{suffix}").unlink(missing_ok=True)
        elif made_by != binary.server_version:
            raise EmbeddedTemporalError(
                f"{self.database} was created by Temporal server {made_by}, but {binary.path} is server "
                f"{binary.server_version}, and such a database cannot be migrated: set EVERBATCH_TEMPORAL_CLI to a "
                f"binary with server {made_by}, or move {self.database}* and {self._version} away to start with an "
                "empty database (batches in progress are then lost, files and results stay)"
            )
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG_LIMIT:
                os.truncate(self.log, 0)

    def mark_healthy(self, binary: TemporalBinary) -> None:
        """Record the version of the server that made the database. Without the record, it counts as incomplete."""
        if self._version.exists():
            return
        temporary = self._version.with_suffix(".tmp")
        # Synced, because if a power cut loses the record, the next start deletes the database.
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as record:
            record.write(f"{binary.server_version}\n")
            record.flush()
            os.fsync(record.fileno())
        os.replace(temporary, self._version)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def open_log(self) -> BinaryIO:
        return open(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")

    def log_tail(self, start: int) -> str:
        """Return the last lines that were logged after byte ``start``, as one line of up to 1,000 characters."""
        with contextlib.suppress(FileNotFoundError), open(self.log, "rb") as log:
            log.seek(max(start, log.seek(0, os.SEEK_END) - 4096))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            return " | ".join(lines[-3:])[-1000:]
        return ""


def _alive(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
