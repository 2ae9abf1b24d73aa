"""Processes that are measured: started with their output in a file, their memory and CPU read from ``/proc``."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Usage:
    """Of a process and its descendants."""

    peak_rss_mb: float
    """Sum of each one's peak, which is an upper bound of the peak of the sum."""
    cpu_seconds: float
    largest_mb: float
    """Peak of the one process that had the largest."""


class ChildProcess:
    """``python -m api.cli.main <arguments>`` as a child; SIGTERM ends it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, name: str, arguments: list[str], env: dict[str, str], log: Path) -> ChildProcess:
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "api.cli.main", *arguments),
                cwd=_ROOT,
                env={**os.environ, **env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
            )
        return cls(name, process, log)

    def check(self) -> None:
        """Raise with its last lines if it has ended."""
        if self._process.returncode is not None:
            raise RuntimeError(f"{self.name} ended with exit code {self._process.returncode}:\n{self.tail()}")

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def usage(self) -> Usage:
        return tree_usage(self._process.pid)

    async def stop(self) -> None:
        if self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def tree_usage(pid: int) -> Usage:
    """Memory and CPU of a process and its living descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    tree = [pid]
    for one in tree:
        tree += [child for child, parent in parents.items() if parent == one]
    peaks = [_peak_rss_mb(one) for one in tree]
    return Usage(round(sum(peaks), 1), round(sum(map(_cpu_seconds, tree)), 2), round(max(peaks), 1))


def _stat(pid: int) -> list[str] | None:
    """The fields after the command, of which the first is the state; ``None`` where the process has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _peak_rss_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    peaks = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0].split()[1]) / 1024 if peaks else 0.0
