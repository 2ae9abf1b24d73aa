"""The feed of a batch: the order in which its committed lines are shown while it runs.

An answer moves: from a part to the object of its shard, and to a result file at the end. What stays is its line
number. So each look at a running batch that finds new committed lines writes their numbers as the next entry,
``feed/<position of its first line>``. Where several processes write the same entry, one succeeds and the others read
it: all show one order, and a position in it is a number that outlives them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from activities.records.keys import feed_prefix
from activities.records.read_ahead import read_ahead
from activities.store.object_store import ObjectStore, StoreError
from workflows.ids import ResultKind


class FeedGroup(NamedTuple):
    """Lines of one shard, in input order. Those of the error file are negative."""

    cut: str
    shard: int
    lines: list[int]


_decode: Final = msgspec.json.Decoder(list[FeedGroup]).decode


class Feed:
    """The feed of one batch, as far as this process knows it. All calls but :meth:`position_after` may block.

    Raises:
        StoreError: from every method that blocks, when the store cannot be used.
    """

    def __init__(self, store: ObjectStore, tenant: str, batch_id: str) -> None:
        self._store = store
        self._prefix = feed_prefix(tenant, batch_id)
        self.starts: list[int] = []
        """Places of the first lines of all entries."""
        self._outputs: list[int] = []
        """Lines of the output file before each entry."""
        self.end = 0
        """Lines in it."""
        self._outputs_end = 0
        self._seen = bytearray()

    def has(self, line: int) -> bool:
        return line < len(self._seen) and bool(self._seen[line])

    def sync(self) -> None:
        """Take up what other processes have written."""
        keys = list(self._store.list(self._prefix, self._key(self.starts[-1]) if self.starts else ""))
        for key, data in zip(keys, read_ahead(self._store.get, keys, self._store.reads_at_once), strict=True):
            if key != self._key(self.end):
                raise StoreError(f"the feed of a batch has no entry before {key}")
            self._take(data)

    def append(self, groups: list[FeedGroup]) -> bool:
        """Write the next entry; whether it was this one, and not that of another process."""
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
        """The lines from a position on, up to the feed's present end or an earlier one."""
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
        """A mark at the number of each line before a position."""
        if position == self.end:
            return self._seen
        seen = bytearray()
        for group in self.groups(0, position):
            _mark(seen, group.lines)
        return seen

    def count(self, kind: ResultKind) -> int:
        """Lines of one of the result files."""
        return self._outputs_end if kind == "output" else self.end - self._outputs_end

    def position_after(self, kind: ResultKind, count: int) -> int:
        """The position behind so many lines of a result file, if there are so many."""
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
