"""Validates large inputs in separate processes, so that requests and workflows do not wait for the interpreter lock."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable
from multiprocessing.connection import Connection, Pipe
from typing import Final

from activities.input.scan import Scanned
from activities.per_tenant import PerTenant
from activities.upstreams.routes import ModelRoutes
from workflows.types import BatchSpec

_PROGRAM: Final = "activities.input.scan_program"
END_SECONDS: Final = 5.0


class ScanProcessEndedError(Exception):
    """The process was killed, perhaps because memory ran out. Another one is started for the next input."""


class ScanProcess:
    """Validates one input at a time. All calls block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int:
        """Id of the process, or 0 if it is not running."""
        return self._process.pid if self._process else 0

    def scan(self, chunks: Iterable[bytes], spec: BatchSpec, routes: ModelRoutes) -> Scanned:
        """Run :func:`activities.input.scan.scan_input` in the process, and raise its errors here.

        Raises:
            ScanProcessEndedError: the process ended before it had finished.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send((spec, routes))
            for chunk in chunks:
                if chunk:
                    pipe.send_bytes(chunk)
            pipe.send_bytes(b"")
            answer: Scanned | Exception = pipe.recv()
        except (EOFError, OSError):
            self.close()
            raise ScanProcessEndedError("the process that checked the input ended in the middle of it") from None
        except BaseException:  # raised by the chunks: the process waits for the rest of an input that is incomplete
            self.close()
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> Connection:
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            # -P: otherwise Python would import from a folder called activities in the current directory.
            [sys.executable, "-P", "-m", _PROGRAM, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C in a terminal reaches only the worker
        )
        theirs.close()
        return self._pipe

    def close(self) -> None:
        """End the process. May be called repeatedly."""
        if self._pipe:
            self._pipe.close()
            self._pipe = None
        if self._process:
            self._process.kill()
            self._process.wait(END_SECONDS)
            self._process = None


class ScanProcesses:
    """A pool of processes, each started when it is first needed. Use it on one event loop only."""

    def __init__(self, maximum: int) -> None:
        self._idle = [ScanProcess() for _ in range(maximum)]
        self._turns = PerTenant(maximum)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncGenerator[ScanProcess]:
        """Wait for an idle process, sending heartbeats, and reserve it within the context."""
        async with self._turns.turn("all tenants"):
            process = self._idle.pop()
            try:
                yield process
            finally:
                self._idle.append(process)

    def close(self) -> None:
        for process in self._idle:
            process.close()
