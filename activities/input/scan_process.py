"""Checking large inputs in processes of their own: beside it, neither requests nor workflows wait for the interpreter.

Run as a program, this module is such a process. It reads an input from a pipe, and answers with what came of it, until
the pipe is closed: with the worker, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Final

from activities.input.scan import Scanned, scan_input
from activities.per_tenant import PerTenant
from activities.upstreams.routes import ModelRoutes
from workflows.types import BatchSpec

NICENESS: Final = 5
"""What engines wait for goes first."""
END_SECONDS: Final = 5.0


class ScanProcessEndedError(Exception):
    """The process was killed, perhaps for want of memory. Another is started for the next input."""


class ScanProcess:
    """Checks one input at a time. All calls block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._process.pid if self._process else 0

    def scan(self, chunks: Iterable[bytes], spec: BatchSpec, routes: ModelRoutes) -> Scanned:
        """As :func:`activities.input.scan.scan_input`.

        Raises:
            ScanProcessEndedError: it did, in the middle of it.
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
        except BaseException:  # from the chunks: what it has read of them is of no use
            self.close()
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> Connection:
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            # -P: else a folder called activities where the command is run would be taken for ours.
            [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is for the worker
        )
        theirs.close()
        return self._pipe

    def close(self) -> None:
        """End it. May be repeated."""
        if self._pipe:
            self._pipe.close()
            self._pipe = None
        if self._process:
            self._process.kill()
            self._process.wait(END_SECONDS)
            self._process = None


class ScanProcesses:
    """Several, each started when it is first needed. Lives on the worker's event loop."""

    def __init__(self, maximum: int) -> None:
        self._idle = [ScanProcess() for _ in range(maximum)]
        self._turns = PerTenant(maximum)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncGenerator[ScanProcess]:
        """Wait for one, with heartbeats, and have it for a time."""
        async with self._turns.turn("all tenants"):
            process = self._idle.pop()
            try:
                yield process
            finally:
                self._idle.append(process)

    def close(self) -> None:
        for process in self._idle:
            process.close()


def _chunks(pipe: Connection) -> Iterator[bytes]:
    while chunk := pipe.recv_bytes():
        yield chunk


def _answer(pipe: Connection) -> Scanned | Exception:
    spec, routes = pipe.recv()
    chunks = _chunks(pipe)
    try:
        return scan_input(chunks, spec, routes)
    except Exception as error:
        return error
    finally:
        for _ in chunks:  # it may have seen enough before the end
            pass


def main() -> None:
    os.nice(NICENESS)
    pipe = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_answer(pipe))


if __name__ == "__main__":
    main()
