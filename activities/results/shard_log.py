"""The log of a shard: the committed answers, and those that an attempt adds. :mod:`activities.results.records` defines
the format of the objects.

A result counts once it is in the store. Parts are written as answers arrive, and the shard object replaces them at the
end. Every key contains the cut of the input (:mod:`activities.records.cuts`) and the attempt that wrote the object, so
objects of other cuts and zombie attempts are neither confused nor overwritten. Answers committed under another cut of
the same input are carried over by line number (:mod:`activities.results.other_cuts`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from activities.records import shard_keys
from activities.records.catalog import Catalog
from activities.records.shard_keys import ShardRef
from activities.results.error_lines import ErrorTally, read_error
from activities.results.records import NO_USAGE, Record, RecordReader, encode_record, tokens_text
from activities.results.shard_waits import ShardWaits, encode_waits, newest
from activities.results.tries import Tries
from activities.store.object_store import ObjectNotFoundError, ObjectStore, StoreError
from workflows.error_summary import MAX_CODES_OF_SHARD, ErrorCount
from workflows.events import PastWait, ended
from workflows.ids import ResultKind
from workflows.types import ShardResult, Usage

MAX_FAILURES: Final = 3
"""Maximum number of failure reasons in the result of a shard."""

HOLD_BYTES: Final = 1 << 20
"""Maximum bytes of committed answers that a running shard keeps in memory. Others are read back from their parts. There
may be as many running shards as requests in flight, each with this many bytes."""

HEAD_BYTES: Final = 200
"""Bytes that are certain to include the head line of a shard object."""

KEEP_BYTES: Final = 2 << 20
"""Maximum bytes in memory of parts that are being read back."""

WORTH: Final = 4
"""Maximum ratio of the bytes of a part that is read at once to those that are wanted of it."""

_LOOK_AGAIN: Final = 3


class ByteRange(NamedTuple):
    """The place of a committed record in the store."""

    key: str
    offset: int
    length: int


_NOTHING_TRIED: Final = Tries()


def shard_heads(store: ObjectStore, prefix: str) -> Iterator[tuple[str, int, int, Usage]]:
    """Yield the key, completed and failed counts, and usage of each shard object under a prefix."""
    for key in store.list(prefix):
        head = None
        with contextlib.suppress(ObjectNotFoundError):
            head = RecordReader(store.stream(key, 0, HEAD_BYTES)).shard_head()
        if head:
            yield key, *head


def find_result(store: ObjectStore, shard: ShardRef) -> ShardResult | None:
    """Return the result from the shard object of any attempt, without errors and waits; ``None`` if there is none."""
    for key, completed, failed, usage in shard_heads(store, shard_keys.results_prefix(shard)):
        return ShardResult(attempt=shard_keys.attempt_of(key), completed=completed, failed=failed, usage=usage)
    return None


def open_result(store: ObjectStore, shard: ShardRef, attempt: str) -> RecordReader:
    """Return a reader of the records in the shard object of an attempt."""
    reader = RecordReader(store.stream(shard_keys.result_key(shard, attempt)))
    reader.shard_head()
    return reader


def with_notes(store: ObjectStore, shard: ShardRef, result: ShardResult) -> ShardResult:
    """Return the result of another attempt, with the errors and waits from its shard object."""
    tally = ErrorTally(shard.number)
    reader = open_result(store, shard, result.attempt)
    for record in reader.records():  # the waits come first
        if not result.failed:
            break
        if record.kind == "error":
            tally.add(record.line, read_error(b"".join(reader.line())).code)
    return result.model_copy(update={"errors": tally.summary(MAX_CODES_OF_SHARD), "waits": reader.waits})


@dataclass(frozen=True)
class Committed:
    """The content of a shard's objects."""

    ranges: dict[int, ByteRange] = field(default_factory=dict[int, ByteRange])
    records: dict[int, Record] = field(default_factory=dict[int, Record])
    tried: dict[int, Tries] = field(default_factory=dict[int, Tries])
    parts: list[str] = field(default_factory=list[str])
    codes: dict[int, str] = field(default_factory=dict[int, str])
    """Error codes of the failed requests."""
    waits: list[PastWait] = field(default_factory=list[PastWait])

    def body(self, line: int) -> ByteRange:
        """Return the place of a record's output line."""
        found, record = self.ranges[line], self.records[line]
        return ByteRange(found.key, found.offset + len(record.head), record.length)

    def take(self, key: str, reader: RecordReader) -> None:
        """Add the content of an object."""
        for record in reader.records():
            # Two attempts may both have an answer, if one of them seemed lost. The first one counts.
            if record.line not in self.records:
                self.records[record.line] = record
                self.ranges[record.line] = ByteRange(key, record.offset, len(record.head) + record.length)
                if record.kind == "error":
                    self.codes[record.line] = read_error(b"".join(reader.line())).code
        for line, tried in reader.tried.items():
            self.tried[line] = tried.merged(self.tried.get(line, _NOTHING_TRIED))
        self.waits[:] = newest([*self.waits, *reader.waits])


def look_up(store: ObjectStore, shard: ShardRef) -> ShardResult | Committed:
    """Return what is committed of a shard: the result of its shard object or, without one, the content of its parts."""
    for _ in range(_LOOK_AGAIN):
        # If a part vanishes, another attempt has finished the shard. The parts are read before the shard object: in
        # the other order, a shard that is finished in between would look as if it had never begun.
        with contextlib.suppress(ObjectNotFoundError):
            committed = _read_parts(store, shard)
            return find_result(store, shard) or committed
    raise StoreError("the parts of a shard vanish without a result")


def _read_parts(store: ObjectStore, shard: ShardRef) -> Committed:
    committed = Committed(parts=list(store.list(shard_keys.parts_prefix(shard))))
    for key in committed.parts:
        committed.take(key, RecordReader(store.stream(key)))
    return committed


class RangeReader:
    """Reads committed records back.

    Each read may be a request over the network, and the records of a part are usually read in succession. So a part of
    which much is wanted is read at once, up to the last wanted record, and the most recent ones are cached.
    """

    def __init__(self, store: ObjectStore, ranges: Iterable[ByteRange], keep_bytes: int | None = None) -> None:
        """Args: ``ranges`` are all ranges that will be read; ``keep_bytes`` is the maximum size of the cache."""
        self._store = store
        self._keep_bytes = KEEP_BYTES if keep_bytes is None else keep_bytes
        self._sizes: dict[str, int] = {}
        wanted: Counter[str] = Counter()
        for span in ranges:
            self._sizes[span.key] = max(span.offset + span.length, self._sizes.get(span.key, 0))
            wanted[span.key] += span.length
        most = self._keep_bytes // 2
        self._at_once = {key for key, size in self._sizes.items() if size <= min(most, WORTH * wanted[key])}
        self._kept: dict[str, bytes] = {}
        """Cached parts by key, the most recently read one last."""

    def read(self, span: ByteRange) -> Iterator[bytes]:
        if span.key not in self._at_once:
            return self._store.stream(span.key, span.offset, span.length)
        data = self._kept.pop(span.key, None)
        if data is None:
            data = b"".join(self._store.stream(span.key, 0, self._sizes[span.key]))
            while self._kept and sum(map(len, self._kept.values())) + len(data) > self._keep_bytes:
                del self._kept[next(iter(self._kept))]
        self._kept[span.key] = data
        return iter((data[span.offset : span.offset + span.length],))


class ShardLog:
    """The answers of one attempt at a shard, including those that earlier attempts committed.

    Use it on the event loop, with one :meth:`load`, :meth:`commit` or :meth:`finish` at a time.
    """

    def __init__(self, store: ObjectStore, shard: ShardRef, attempt: str) -> None:
        self._store = store
        self._shard = shard
        self._attempt = attempt
        self._part_number = 0
        self._parts: list[str] = []
        self._records: dict[int, bytes | ByteRange] = {}
        self._pending: list[tuple[int, bytes]] = []
        self._held_bytes = 0
        self._tried_changed: set[int] = set()
        self._usage: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._tried: dict[int, Tries] = {}
        self.waits = ShardWaits()
        self.completed = 0
        self.failed = 0
        self.committed = (0, 0)
        """Number of completed and of failed requests in the store."""
        self._errors = ErrorTally(shard.number)
        self.committed_errors: list[ErrorCount] = []
        self.committed_at: float | None = None
        """Unix time in seconds of the last commit by this attempt."""

    @property
    def done(self) -> int:
        return self.completed + self.failed

    @property
    def has_uncommitted(self) -> bool:
        return bool(self._pending or self._tried_changed)

    def has(self, line: int) -> bool:
        return line in self._records

    async def load(self) -> ShardResult | None:
        """Load what is committed. Returns a result if the shard is finished, an empty one if the batch has ended."""
        committed = await asyncio.to_thread(self._look_up)
        if isinstance(committed, ShardResult):
            return committed
        for record in committed.records.values():
            self._count(record.kind, record.usage)
        for line, code in committed.codes.items():
            self._errors.add(line, code)
        self.committed_errors = self._errors.summary(MAX_CODES_OF_SHARD)
        self._records.update(committed.ranges)
        self.committed = (self.completed, self.failed)
        self._tried = committed.tried
        self.waits.past = committed.waits
        self._parts = committed.parts
        return None

    def _look_up(self) -> ShardResult | Committed:
        if Catalog(self._store).get_final(self._shard.batch):
            return ShardResult(attempt="", completed=0, failed=0)
        found = look_up(self._store, self._shard)
        return with_notes(self._store, self._shard, found) if isinstance(found, ShardResult) else found

    def add(self, line: int, kind: ResultKind, data: bytes, usage: Usage = NO_USAGE, reason: str = "") -> None:
        """Add a request's final answer. It counts from the next commit on.

        Args: ``reason`` is why a request failed, in words that may be sent to Temporal.
        """
        if reason:
            self._failures[reason] += 1
        encoded = encode_record(line, kind, data, usage)
        self._records[line] = encoded
        self._pending.append((line, encoded))
        self._count(kind, usage)
        if kind == "error":
            self._errors.add(line, read_error(data).code)

    def tries(self, line: int) -> Tries:
        return self._tried.get(line, _NOTHING_TRIED)

    def note_tries(self, line: int, tries: Tries) -> None:
        """Add the tries of a request, in this cut or another one. They count from the next commit on."""
        tries = tries.merged(self.tries(line))
        if tries != self.tries(line):
            self._tried[line] = tries
            self._tried_changed.add(line)

    async def commit(self) -> None:
        """Write everything added since the last commit as one part."""
        pending, self._pending = self._pending, []
        tried, self._tried_changed = self._tried_changed, set()
        waited, self.waits.has_changed = self.waits.has_changed, False
        if not (pending or tried or waited):
            return
        # Each try needs a key of its own: if its caller is cancelled, a put continues in its thread and may end last.
        key = shard_keys.part_key(self._shard, self._attempt, self._part_number)
        self._part_number += 1
        self._parts.append(key)
        notes = ["{} tried {} {} {}\n".format(line, *self._tried[line]).encode() for line in sorted(tried)]
        if waited:
            notes.append(encode_waits(self.waits.past))
        data = b"".join([encoded for _, encoded in pending] + notes)
        counts = (self.completed, self.failed)
        errors = self._errors.summary(MAX_CODES_OF_SHARD)
        try:
            await asyncio.to_thread(self._store.put, key, data)
        except BaseException:
            self._pending[:0] = pending
            self._tried_changed |= tried
            self.waits.has_changed |= waited
            raise
        self.committed, self.committed_errors, self.committed_at = counts, errors, time.time()
        offset = 0
        for line, encoded in pending:
            self._held_bytes += len(encoded)
            if self._held_bytes > HOLD_BYTES:
                self._records[line] = ByteRange(key, offset, len(encoded))
            offset += len(encoded)

    async def finish(self) -> ShardResult:
        """Write the shard object with all answers, then delete the parts that it replaces. Returns the result."""
        result = await asyncio.to_thread(self._finish)
        # Free the memory now: a run is part of a reference cycle, so it may be collected only minutes after its end.
        self._pending.clear()
        self._records.clear()
        return result

    def _finish(self) -> ShardResult:
        usage = Usage(**self._usage)
        head = f"shard {self.completed} {self.failed} {tokens_text(usage)}\n".encode()
        waits = [ended(wait, int(time.time())) for wait in self.waits.past]
        parts = RangeReader(self._store, (span for span in self._records.values() if isinstance(span, ByteRange)))
        try:
            with self._store.writer(shard_keys.result_key(self._shard, self._attempt)) as writer:
                writer.write(head)
                if waits:
                    writer.write(encode_waits(waits))
                for line in sorted(self._records):
                    record = self._records[line]
                    for piece in parts.read(record) if isinstance(record, ByteRange) else (record,):
                        writer.write(piece)
                writer.commit()
        except ObjectNotFoundError:
            # A part is gone, because another attempt has finished the shard. Its object counts.
            if result := find_result(self._store, self._shard):
                return with_notes(self._store, self._shard, result)
            raise
        self._store.delete(*self._parts)
        failures = ", ".join(f"{count} × {reason}" for reason, count in self._failures.most_common(MAX_FAILURES))
        return ShardResult(
            attempt=self._attempt,
            completed=self.completed,
            failed=self.failed,
            usage=usage,
            failures=failures,
            errors=self._errors.summary(MAX_CODES_OF_SHARD),
            waits=waits,
        )

    def _count(self, kind: ResultKind, usage: Usage) -> None:
        if kind == "output":
            self.completed += 1
        else:
            self.failed += 1
        if usage is not NO_USAGE:
            self._usage.update(dict(usage))
