"""Returns the committed lines of a batch page by page, while it runs and after its end.

While a batch runs, pages follow its feed (:mod:`activities.records.feed`), and the lines are read from the parts and
shard objects. After its end, the lines are read from the result files in input order, without those before the
client's position in the feed, which it received while the batch ran. So a client that reads past the end of a batch
receives each line once.
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
from workflows.ids import BatchRef, ResultKind
from workflows.types import BatchRecord

PAGE_BYTES: Final = 4 << 20
"""A page ends with the line that reaches this size. Pages are built in memory, so that a failure of the store becomes
an error response."""
ENTRY_LINES: Final = 1000
"""Number of lines after which an entry of the feed ends, with the end of the object that is being read."""
ENTRIES_A_SECOND: Final = 500
"""New lines are looked for every ``entries / ENTRIES_A_SECOND`` seconds, given the number of entries of the feed.
Otherwise a batch of several days would get more entries than can be read again."""
FEEDS_KEPT: Final = 32
"""Maximum number of feeds in memory. Each takes about a byte for each line of its batch."""
LOOK_AGAIN: Final = 4

_CURSOR: Final = re.compile(r"([0-9]{1,8})(?:-([0-9]{1,15})-([0-9]{1,15}))?")


class Cursor(NamedTuple):
    """The position up to which a client has read."""

    position: int = 0
    """Position in the feed."""
    offsets: tuple[int, int] | None = None
    """Bytes read of the output and of the error file, once the batch has ended."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises:
        BadCursorError: the text is not a cursor.
        """
        match = _CURSOR.fullmatch(text)
        if not match:
            raise BadCursorError
        position, output, error = match.groups()
        return cls(int(position), (int(output), int(error)) if output else None)

    def __str__(self) -> str:
        return str(self.position) if self.offsets is None else "-".join(map(str, (self.position, *self.offsets)))


class BadCursorError(Exception):
    """The cursor does not belong to a page of this batch."""


class ResultsGoneError(Exception):
    """The result files of the batch were deleted or have expired."""


class Page(NamedTuple):
    lines: list[bytes]
    cursor: Cursor
    """Cursor of the next page."""
    is_last: bool
    """Whether no lines follow, now or later."""


@dataclass
class _Known:
    """The state of a batch's feed in this process."""

    ref: BatchRef
    feed: Feed
    lock: threading.Lock
    read: set[str]
    """Keys of parts and shard objects all of whose lines are in the feed."""
    looked_at: float = float("-inf")


class ResultPages:
    """Reads pages of committed lines. All calls block, and raise ``StoreError`` when the store cannot be used."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._clock = clock
        self._batches: OrderedDict[BatchRef, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, ref: BatchRef, cursor: Cursor, limit: int, kind: ResultKind | None = None) -> Page:
        """Return up to ``limit`` committed lines after a cursor, of one of the result files or, by default, of both.

        Raises:
            BadCursorError: the cursor is not one of this batch.
            ResultsGoneError: the batch has ended, and its files were deleted or have expired.
        """
        known = self._known(ref)
        for _ in range(LOOK_AGAIN):
            final = self._catalog.get_final(ref)
            files = final if final and has_result_files(final) else None
            self._look(known, 0 if files else cursor.position + limit, at_once=final is not None)
            if cursor.position > known.feed.end:
                raise BadCursorError
            if files:
                return self._page_of_files(files, known.feed, cursor, limit, kind)
            if cursor.offsets is not None:
                raise BadCursorError
            try:
                lines, position = self._read_feed(known, cursor.position, limit, kind)
            except ObjectNotFoundError:
                if final:
                    raise ResultsGoneError from None
                continue  # the batch has ended in the meantime
            return Page(lines, Cursor(position), final is not None and position == known.feed.end)
        raise StoreError(f"what batch {ref.batch_id} has committed vanishes while it is read")

    def count(self, ref: BatchRef, kind: ResultKind) -> int:
        """Return the number of committed lines of one of the result files; after the end, of those in the feed."""
        known = self._known(ref)
        final = self._catalog.get_final(ref)
        before = -1
        while known.feed.end > before:
            before = known.feed.end
            self._look(known, 0 if final else before + 1)
        return known.feed.count(kind)

    def behind(self, ref: BatchRef, kind: ResultKind, count: int) -> Cursor:
        """Return the cursor after the first ``count`` lines of one of the result files.

        Args: ``count`` is at most what :meth:`count` has returned.
        """
        return Cursor(self._known(ref).feed.position_after(kind, count))

    def _known(self, ref: BatchRef) -> _Known:
        with self._lock:
            if ref not in self._batches:
                self._batches[ref] = _Known(ref, Feed(self._store, ref), threading.Lock(), set())
            self._batches.move_to_end(ref)
            if len(self._batches) > FEEDS_KEPT:
                self._batches.popitem(last=False)
            return self._batches[ref]

    # New lines

    def _look(self, known: _Known, wanted: int, *, at_once: bool = False) -> None:
        """Extend the feed to at least ``wanted`` lines, if enough lines are committed.

        Args: ``at_once`` looks for new lines even if it was done recently.
        """
        feed = known.feed
        with known.lock:
            feed.sync()
            while feed.end < wanted:
                if not at_once and self._clock() - known.looked_at < len(feed.starts) / ENTRIES_A_SECOND:
                    return
                groups, read, is_all = self._new_lines(known)
                if groups and not feed.append(groups):
                    continue
                known.read = read if is_all else known.read | read
                if is_all:
                    known.looked_at = self._clock()
                    return

    def _new_lines(self, known: _Known) -> tuple[list[FeedGroup], set[str], bool]:
        """Find committed lines that are not in the feed, about as many as an entry holds.

        Returns the lines, the keys of the objects that contain no other new lines, and whether these are all new lines.
        The batch's copy of its input never changes, so a line number means the same line in every shard table.
        """
        found: dict[tuple[str, int], dict[int, int]] = {}
        taken: set[int] = set()
        read: set[str] = set()
        is_all = True
        # Parts first: when a shard ends, its shard object is written before its parts are deleted.
        for prefix in shard_keys.answers_prefixes(known.ref):
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

    def _read_feed(self, known: _Known, position: int, limit: int, kind: ResultKind | None) -> tuple[list[bytes], int]:
        """Return lines from a position on, and the position after them."""
        lines: list[bytes] = []
        size = 0
        for group in known.feed.groups(position):
            wanted = [line for line in group.lines if kind is None or (line > 0) == (kind == "output")]
            shard = ShardRef(known.ref, group.cut, group.shard)
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
    """The lines of a result file from an offset on, read one line ahead."""

    def __init__(self, catalog: Catalog, tenant: str, file_id: str | None, offset: int) -> None:
        self.offset = offset
        """Offset of the next line in the file."""
        self.number = 0
        """Number of the input line that the next line answers."""
        self.line: bytes | None = None
        """The next line; ``None`` at the end of the file."""
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
        except ValueError:  # the offset is in the middle of a line
            raise BadCursorError from None
