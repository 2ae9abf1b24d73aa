"""What is committed of a batch, page by page, while it runs and after its end.

While a batch runs, a page follows its feed (:mod:`activities.records.feed`), and the lines come from the parts and
objects of its shards. After its end they come from the result files, in input order, without those that the client
had when the batch ended: all before its position in the feed. So whoever follows a batch through its end gets each line
once.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from activities.records import keys, shard_keys
from activities.records.catalog import Catalog, has_result_files
from activities.records.feed import Feed, FeedGroup
from activities.records.shard_keys import ShardRef
from activities.results.output_lines import result_lines
from activities.results.records import RecordReader
from activities.results.shard_lines import lines_of_shard
from activities.store.object_store import ObjectNotFoundError, ObjectStore, StoreError
from workflows.ids import ResultKind
from workflows.types import BatchRecord

PAGE_BYTES: Final = 4 << 20
"""A page ends with the line that reaches it. Pages are held in memory, so a store that fails is an error response."""
ENTRY_LINES: Final = 1000
"""After which an entry of a feed ends with the object that is being read."""
ENTRIES_A_SECOND: Final = 500
"""Seconds between two looks for new lines are the number of a feed's entries by this, or a batch of days would get
so many that nobody could read them again."""
FEEDS_KEPT: Final = 32
"""In memory, about a byte for each line of their batches."""
LOOK_AGAIN: Final = 4

_CURSOR: Final = re.compile(r"([0-9]{1,8})(?:-([0-9]{1,15})-([0-9]{1,15}))?")


class Cursor(NamedTuple):
    """How far a client has read."""

    position: int = 0
    """In the feed."""
    offsets: tuple[int, int] | None = None
    """Bytes read of the output and the error file, once the batch has ended."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises:
        BadCursorError: it is none.
        """
        match = _CURSOR.fullmatch(text)
        if not match:
            raise BadCursorError
        position, output, error = match.groups()
        return cls(int(position), (int(output), int(error)) if output else None)

    def __str__(self) -> str:
        return str(self.position) if self.offsets is None else "-".join(map(str, (self.position, *self.offsets)))


class BadCursorError(Exception):
    """No page of this batch has ended there."""


class ResultsGoneError(Exception):
    """The result files of the batch were deleted or have expired."""


class Page(NamedTuple):
    lines: list[bytes]
    cursor: Cursor
    """Of the next page."""
    is_last: bool
    """Whether there is nothing behind it and never will be."""


@dataclass
class _Known:
    """What this process knows of a batch."""

    feed: Feed
    lock: threading.Lock
    read: set[str]
    """Parts and shard objects of which every line is in the feed."""
    looked_at: float = float("-inf")


class ResultPages:
    """All calls block.

    Raises:
        StoreError: from every method, when the store cannot be used.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._clock = clock
        self._batches: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, tenant: str, batch_id: str, cursor: Cursor, limit: int, kind: ResultKind | None = None) -> Page:
        """The lines behind a cursor that are committed: at most ``limit``, of one file or both.

        Raises:
            BadCursorError: it is not of this batch.
            ResultsGoneError: the batch has ended and the files are gone.
        """
        known = self._known(tenant, batch_id)
        for _ in range(LOOK_AGAIN):
            final = self._catalog.get_final(tenant, batch_id)
            files = final if final and has_result_files(final) else None
            self._look(known, tenant, batch_id, 0 if files else cursor.position + limit, at_once=final is not None)
            if cursor.position > known.feed.end:
                raise BadCursorError
            if files:
                return self._page_of_files(files, known.feed, cursor, limit, kind)
            if cursor.offsets is not None:
                raise BadCursorError
            try:
                lines, position = self._read_feed(tenant, batch_id, known.feed, cursor.position, limit, kind)
            except ObjectNotFoundError:
                if final:
                    raise ResultsGoneError from None
                continue  # the batch has ended meanwhile
            return Page(lines, Cursor(position), final is not None and position == known.feed.end)
        raise StoreError(f"what batch {batch_id} has committed vanishes while it is read")

    def count(self, tenant: str, batch_id: str, kind: ResultKind) -> int:
        """Lines of one of the result files that are committed by now, or in the feed of a batch that has ended."""
        known = self._known(tenant, batch_id)
        final = self._catalog.get_final(tenant, batch_id)
        before = -1
        while known.feed.end > before:
            before = known.feed.end
            self._look(known, tenant, batch_id, 0 if final else before + 1)
        return known.feed.count(kind)

    def behind(self, tenant: str, batch_id: str, kind: ResultKind, count: int) -> Cursor:
        """The cursor of a client that has read so many lines of one of the result files, and :meth:`count` said so."""
        return Cursor(self._known(tenant, batch_id).feed.position_after(kind, count))

    def _known(self, tenant: str, batch_id: str) -> _Known:
        with self._lock:
            key = (tenant, batch_id)
            if key not in self._batches:
                self._batches[key] = _Known(Feed(self._store, tenant, batch_id), threading.Lock(), set())
            self._batches.move_to_end(key)
            if len(self._batches) > FEEDS_KEPT:
                self._batches.popitem(last=False)
            return self._batches[key]

    # New lines

    def _look(self, known: _Known, tenant: str, batch_id: str, wanted: int, *, at_once: bool = False) -> None:
        """Have the feed reach so far, if enough is committed.

        Args: ``at_once`` looks whenever the last look was.
        """
        feed = known.feed
        with known.lock:
            feed.sync()
            while feed.end < wanted:
                if not at_once and self._clock() - known.looked_at < len(feed.starts) / ENTRIES_A_SECOND:
                    return
                groups, read, is_all = self._new_lines(known, tenant, batch_id)
                if groups and not feed.append(groups):
                    continue
                known.read = read if is_all else known.read | read
                if is_all:
                    known.looked_at = self._clock()
                    return

    def _new_lines(self, known: _Known, tenant: str, batch_id: str) -> tuple[list[FeedGroup], set[str], bool]:
        """Committed lines that are not in the feed, about as many as an entry holds; the objects that have no others;
        and whether these are all.

        The batch's copy of its input never changes, so a line is the same one in every cut.
        """
        found: dict[tuple[str, int], dict[int, int]] = {}
        taken: set[int] = set()
        read: set[str] = set()
        is_all = True
        # Parts first: of a shard that ends meanwhile, the object is there before they go.
        for prefix in shard_keys.answers_prefixes(tenant, batch_id):
            for key in self._store.list(prefix):
                if key not in known.read:
                    if len(taken) >= ENTRY_LINES:
                        is_all = False
                        break
                    cut, shard, _ = key.removeprefix(prefix).split("/")
                    group = found.setdefault((cut, int(shard)), {})
                    for line, kind in self._lines_of(key, is_part=prefix.endswith("/parts/")):
                        if line not in taken and not known.feed.has(line):
                            taken.add(line)
                            group[line] = line if kind == "output" else -line
                read.add(key)
        groups = [
            FeedGroup(cut, shard, [lines[line] for line in sorted(lines)])
            for (cut, shard), lines in sorted(found.items())
            if lines
        ]
        return groups, read, is_all

    def _lines_of(self, key: str, *, is_part: bool) -> Iterator[tuple[int, ResultKind]]:
        try:
            reader = RecordReader(self._store.stream(key))
        except ObjectNotFoundError:  # a part whose shard has ended
            return
        if not is_part:
            reader.shard_head()
        for record in reader.records():
            yield record.line, record.kind

    # While the batch runs

    def _read_feed(
        self, tenant: str, batch_id: str, feed: Feed, position: int, limit: int, kind: ResultKind | None
    ) -> tuple[list[bytes], int]:
        """Lines from a position on, and the position behind them."""
        lines: list[bytes] = []
        size = 0
        for group in feed.groups(position):
            wanted = [line for line in group.lines if kind is None or (line > 0) == (kind == "output")]
            shard = ShardRef(tenant, batch_id, group.cut, group.shard)
            contents = lines_of_shard(self._store, shard, [abs(n) for n in wanted])
            kept = set(wanted)
            for line in group.lines:
                if len(lines) == limit or size >= PAGE_BYTES:
                    return lines, position
                if line in kept:
                    lines.append(next(contents))
                    size += len(lines[-1])
                position += 1
        return lines, position

    # After the end

    def _page_of_files(
        self, final: BatchRecord, feed: Feed, cursor: Cursor, limit: int, kind: ResultKind | None
    ) -> Page:
        known = feed.lines_before(cursor.position)
        output, error = cursor.offsets or (0, 0)
        status = final.status
        files = [
            _ResultFile(self._catalog, final.spec.tenant, file_id if kind in (None, of) else None, offset)
            for of, file_id, offset in (
                ("output", status.output_file_id, output),
                ("error", status.error_file_id, error),
            )
        ]
        lines: list[bytes] = []
        size = 0
        while len(lines) < limit and size < PAGE_BYTES:
            unread = [file for file in files if file.line is not None]
            if not unread:
                break
            file = min(unread, key=lambda file: file.number)
            data, number = file.take()
            if number >= len(known) or not known[number]:
                lines.append(data)
                size += len(data)
        end = Cursor(cursor.position, (files[0].offset, files[1].offset))
        return Page(lines, end, all(file.line is None for file in files))


class _ResultFile:
    """The lines of a result file from an offset on, one ahead."""

    def __init__(self, catalog: Catalog, tenant: str, file_id: str | None, offset: int) -> None:
        self.offset = offset
        """Bytes taken."""
        self.number = 0
        """Of the next line, in the input."""
        self.line: bytes | None = None
        """The next; ``None`` at the end."""
        chunks: Iterator[bytes] = iter(())
        if file_id:
            record = catalog.find_file(tenant, file_id)
            if record is None or record.is_expired(time.time()):
                raise ResultsGoneError
            if offset > record.bytes:
                raise BadCursorError
            try:
                chunks = catalog.store.stream(keys.content_key(tenant, file_id), offset)
            except ObjectNotFoundError:
                raise ResultsGoneError from None
        self._lines = result_lines(chunks)
        self._next()

    def take(self) -> tuple[bytes, int]:
        assert self.line is not None
        data, number = self.line, self.number
        self.offset += len(data)
        self._next()
        return data, number

    def _next(self) -> None:
        try:
            self.number, self.line = next(self._lines, (0, None))
        except ValueError:  # an offset that is in the middle of a line
            raise BadCursorError from None
