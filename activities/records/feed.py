"""The feed of a batch: the order in which its committed lines are shown while it runs.

An answer moves from a part to the shard object, and to a result file at the end, but its line number stays the same. So
whenever a process finds new committed lines of a running batch, it writes their numbers as the feed's next entry,
``feed/<position of its first line>``. If several processes write the same entry, one succeeds and the others read it.
Therefore all processes show the same order, and a position in it stays valid when they restart.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from activities.records.keys import feed_prefix
from activities.records.read_ahead import read_ahead
from activities.store.object_store import ObjectStore, StoreError
from workflows.ids import BatchRef, ResultKind


class FeedGroup(NamedTuple):
    """Line numbers of one shard, in input order. The numbers of lines of the error file are negative."""

    cut: str
    shard: int
    lines: list[int]


_decode: Final = msgspec.json.Decoder(list[FeedGroup]).decode


class Feed:
    """The feed of one batch, as far as this process knows it."""

    def __init__(self, store: ObjectStore, ref: BatchRef) -> None:
        self._store = store
        self._prefix = feed_prefix(ref)
        self.starts: list[int] = []
        """Position of the first line of each entry."""
        self._outputs: list[int] = []
        """Number of lines of the output file before each entry."""
        self.end = 0
        """Number of lines in the feed, which is also the position of the next line."""
        self._outputs_end = 0
        self._seen = bytearray()

    def has(self, line: int) -> bool:
        return line < len(self._seen) and bool(self._seen[line])

    def sync(self) -> None:
        """Read the entries that other processes have written."""
        keys = list(self._store.list(self._prefix, self._key(self.starts[-1]) if self.starts else ""))
        for key, data in zip(keys, read_ahead(self._store.get, keys, self._store.reads_at_once), strict=True):
            if key != self._key(self.end):
                raise StoreError(f"the feed of a batch has no entry before {key}")
            self._take(data)

    def append(self, groups: list[FeedGroup]) -> bool:
        """Write the next entry. Returns ``False`` if another process has written a different one, which is read."""
        data = msgspec.json.encode(groups)
        written = self._store.put_new(self._key(self.end), data)
        self._take(written)
        return written == data

    def _take(self, data: bytes) -> None:
        self.starts.append(self.end)
        self._outputs.append(self._outputs_end)
        for _, _, lines in _decode(data):
            self.end += len(lines)
            self._outputs_end += sum(line > 0 for line in lines)
            _mark(self._seen, lines)

    def groups(self, position: int, end: int | None = None) -> Iterator[FeedGroup]:
        """Yield the lines from a position up to ``end``, which is by default the current end of the feed."""
        end = self.end if end is None else end
        first = bisect.bisect_right(self.starts, position) - 1
        for start in self.starts[max(first, 0) :]:
            for group in _decode(self._store.get(self._key(start))):
                if start >= end:
                    return
                lines = group.lines[max(position - start, 0) : end - start]
                if lines:
                    yield group._replace(lines=lines)
                start += len(group.lines)

    def lines_before(self, position: int) -> bytearray:
        """Return an array with a 1 at the number of each line before a position. It must not be modified."""
        if position == self.end:
            return self._seen
        seen = bytearray()
        for group in self.groups(0, position):
            _mark(seen, group.lines)
        return seen

    def count(self, kind: ResultKind) -> int:
        """Return the number of the feed's lines that belong to one of the result files."""
        return self._outputs_end if kind == "output" else self.end - self._outputs_end

    def position_after(self, kind: ResultKind, count: int) -> int:
        """Return the position after the first ``count`` lines of a result file.

        Raises:
            ValueError: the feed has fewer lines of it.
        """
        if not count:
            return 0
        before = [
            outputs if kind == "output" else start - outputs
            for start, outputs in zip(self.starts, self._outputs, strict=True)
        ]
        entry = bisect.bisect_left(before, count) - 1
        position, left = self.starts[entry], count - before[entry]
        for group in self.groups(position):
            for line in group.lines:
                position += 1
                left -= (line > 0) == (kind == "output")
                if not left:
                    return position
        raise ValueError(f"the feed has {self.count(kind)} lines of the {kind} file")

    def _key(self, position: int) -> str:
        return f"{self._prefix}{position:08d}"


def _mark(seen: bytearray, lines: list[int]) -> None:
    last = max(map(abs, lines), default=0)
    seen.extend(bytes(max(0, last + 1 - len(seen))))
    for line in lines:
        seen[abs(line)] = 1
