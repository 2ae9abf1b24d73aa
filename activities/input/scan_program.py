"""The program of a process that validates large inputs.

It reads an input from a pipe, sends back the result, and repeats this until the pipe is closed, which happens at the
latest when the worker ends, for whatever reason. The first large input of a worker waits for its start, so what it
imports is kept small: neither Temporal's SDK nor an HTTP client.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Final

from activities.input.scan import Scanned, scan_input

NICENESS: Final = 5
"""Niceness of the process: work that engines wait for takes precedence."""


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
        for _ in chunks:  # the scan may end early; read the rest, so that the next input begins at its beginning
            pass


def main() -> None:
    os.nice(NICENESS)
    pipe = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_answer(pipe))


if __name__ == "__main__":
    main()
