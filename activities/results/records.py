"""The format in which committed answers are stored.

A part object is a sequence of records. A shard object is one head line, followed by the records of all its requests in
input order. A record is a head line and, for an answer, the bytes of the finished output line, so that merging only
copies bytes::

    17 output 3512 120 0 34 0       line, kind, bytes, input, cached, output and reasoning tokens
    {"id":"batch_req_…", …}
    19 tried 2 1 0                  line 19 has no answer yet; its :class:`activities.results.tries.Tries`
    0 waited […]                    the shard's waits, see :mod:`activities.results.shard_waits`; in a shard object
                                    they precede all records
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from activities.results.shard_waits import decode_waits
from activities.results.tries import Tries
from activities.store.object_store import StoreError
from workflows.events import PastWait
from workflows.ids import ResultKind
from workflows.types import Usage

NO_USAGE: Final = Usage()


class Record(NamedTuple):
    """One answer and its position in the object that holds it."""

    line: int
    kind: ResultKind
    usage: Usage
    head: bytes
    offset: int
    """Byte offset of the head line in the object."""
    length: int
    """Bytes of the output line that follows the head line."""


class RecordReader:
    """Reads a part or shard object as a stream. A record's line is skipped unless it is read before the next record."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""
        self._at: int = 0
        self._base: int = 0  # offset of the buffer's first byte in the object
        self._unread = 0  # bytes left of the last record's output line
        self.tried: dict[int, Tries] = {}
        self.waits: list[PastWait] = []

    def shard_head(self) -> tuple[int, int, Usage] | None:
        """Read the head line of a shard object. Call this first.

        Returns the numbers of completed and failed requests and their usage, or ``None`` if the object is empty.
        """
        head = self._head_line()
        if head is None:
            return None
        _, completed, failed, *tokens = head.split()
        return int(completed), int(failed), _usage(tokens)

    def records(self) -> Iterator[Record]:
        while True:
            for _ in self.line():
                pass
            offset = self._base + self._at
            head = self._head_line()
            if head is None:
                return
            line, kind, rest = head.split(maxsplit=2)
            if kind == b"waited":
                self.waits = decode_waits(rest)
                continue
            numbers = rest.split()
            if kind == b"tried":
                self.tried[int(line)] = Tries(*map(int, numbers))
                continue
            self._unread = int(numbers[0])
            yield Record(
                int(line), "output" if kind == b"output" else "error", _usage(numbers[1:]), head, offset, self._unread
            )

    def line(self) -> Iterator[bytes]:
        """Yield the bytes of the last record's output line.

        Raises:
            StoreError: the object ends too early.
        """
        while self._unread:
            if self._at == len(self._buffer) and not self._fill():
                raise StoreError("a result object ends too early")
            piece = self._buffer[self._at : self._at + self._unread]
            self._at += len(piece)
            self._unread -= len(piece)
            yield piece

    def _head_line(self) -> bytes | None:
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            if not self._fill():
                return None
        head = self._buffer[self._at : end + 1]
        self._at = end + 1
        return head

    def _fill(self) -> bool:
        chunk = next(self._chunks, b"")
        self._base += self._at
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)


def _usage(tokens: list[bytes]) -> Usage:
    if tokens == [b"0", b"0", b"0", b"0"]:
        return NO_USAGE
    return Usage(**dict(zip(Usage.model_fields, map(int, tokens), strict=True)))


def tokens_text(usage: Usage) -> str:
    return f"{usage.input_tokens} {usage.cached_tokens} {usage.output_tokens} {usage.reasoning_tokens}"


def encode_record(line: int, kind: ResultKind, data: bytes, usage: Usage = NO_USAGE) -> bytes:
    """Return a record. Args: ``data`` is an output or error line including its line break."""
    return f"{line} {kind} {len(data)} {tokens_text(usage)}\n".encode() + data
