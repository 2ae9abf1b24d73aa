"""The activity that ends every batch: merges committed answers into the result files and writes the final record."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Literal, NamedTuple

from temporalio import activity

from activities import catalog
from activities.batch_plan import BatchPlan, load_plan
from activities.catalog import Catalog, FileRecord
from activities.in_thread import StopFlag, run_in_thread
from activities.jsonl import RequestLine, parse_line, read_lines
from activities.output_lines import OutputLines
from activities.request_rules import model_of
from activities.results import Committed, Kind, Place, PlaceReader, RecordReader, look_up
from activities.running_batches import RunningBatches
from activities.storage import ObjectNotFound, ObjectStore, ObjectWriter, StoreError
from workflows.contract import WRITE_FILES, WriteFilesStub
from workflows.ids import result_file_id
from workflows.types import (
    BatchPhase,
    BatchRecord,
    BatchSpec,
    BatchStatus,
    Counts,
    Shard,
    Usage,
    WriteFilesInput,
)

LOOK_SECONDS = 3600
"""From the end of a batch until the janitor looks for what attempts that were thought dead have left of it."""

_END_TIMES = {
    BatchPhase.COMPLETED: "completed_at",
    BatchPhase.FAILED: "failed_at",
    BatchPhase.EXPIRED: "expired_at",
    BatchPhase.CANCELLED: "cancelled_at",
}


class WriteFiles(WriteFilesStub):
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._catalog = Catalog(store)

    @activity.defn(name=WRITE_FILES)
    async def write_files(self, task: WriteFilesInput) -> BatchStatus:
        return await run_in_thread(lambda stop: self._write(task, stop))

    def _write(self, task: WriteFilesInput, stop: StopFlag) -> BatchStatus:
        spec = task.spec
        final = self._catalog.get_final(spec.tenant, spec.batch_id)
        if not final:
            at = int(time.time()) + LOOK_SECONDS
            self._catalog.remind("batch", spec.tenant, spec.batch_id, at)
            status = task.status
            if status.counts.total:
                status = self._merge(task, stop)
            end = self._end(task)
            final = BatchRecord(spec=spec, status=status.model_copy(update=end))
            self._catalog.save_final(final)
        if spec.counted:
            RunningBatches(self._catalog).remove(spec.tenant, spec.batch_id)
        # Only now: the record is what tells an attempt after a crash that all of this is no longer needed.
        self._catalog.delete_leftovers(spec.tenant, spec.batch_id)
        return final.status

    def _end(self, task: WriteFilesInput) -> dict[str, object]:
        """The terminal state, decided as late as can be: cancelled while its files are written, a batch keeps what is
        answered and is cancelled still.
        """
        outcome, now = task.outcome, int(time.time())
        if outcome in (BatchPhase.COMPLETED, BatchPhase.EXPIRED):
            asked_at = self._catalog.cancel_requested_at(task.spec.tenant, task.spec.batch_id)
            if asked_at is not None:
                outcome = BatchPhase.CANCELLED
                return {"phase": outcome, "cancelling_at": asked_at, _END_TIMES[outcome]: now}
        return {"phase": outcome, _END_TIMES[outcome]: now}

    def _merge(self, task: WriteFilesInput, stop: StopFlag) -> BatchStatus:
        spec = task.spec
        with ExitStack() as stack:
            files = _ResultFiles(self._store, spec, stack)
            for line in self._lines(task, stop):
                files.copy(line)
            counts = Counts(
                total=task.status.counts.total, completed=files.count["output"], failed=files.count["error"]
            )
            if counts.completed + counts.failed != counts.total:
                raise StoreError(f"{counts.completed} + {counts.failed} result lines for {counts.total} requests")
            if self._catalog.get_final(spec.tenant, spec.batch_id):
                raise StoreError("another attempt has written the files")  # and the next one finds its record
            ids = files.publish(self._catalog, time.time_ns() // 1_000_000)
        return task.status.model_copy(
            update={
                "counts": counts,
                "usage": files.usage,
                "output_file_id": ids["output"],
                "error_file_id": ids["error"],
                "finished_shards": "",
            }
        )

    def _lines(self, task: WriteFilesInput, stop: StopFlag) -> Iterator[_ResultLine]:
        """The result lines of all shards in input order. Take the bytes of each before the next."""
        if not task.plan:
            shards = self._catalog.get_shards(task.spec.tenant, task.spec.batch_id)
            return self._lines_of_shards(task, enumerate(shards), lambda line: True, stop)
        plan = load_plan(self._store.get(catalog.plan_key(task.spec.tenant, task.spec.batch_id, task.plan)))
        # Shards of one upstream follow on each other; those of several lie across each other.
        by_upstream: dict[int, list[tuple[int, Shard]]] = {}
        for index, shard in enumerate(plan.shards):
            by_upstream.setdefault(shard.upstream, []).append((index, shard))
        runs = [
            self._shards_in_turn(task, shards, partial(_is_of, plan, upstream), stop)
            for upstream, shards in by_upstream.items()
        ]
        merged = heapq.merge(*runs, key=_line_number)
        return (item for item in merged if isinstance(item, _ResultLine))

    def _shards_in_turn(
        self,
        task: WriteFilesInput,
        shards: Iterable[tuple[int, Shard]],
        is_mine: Callable[[RequestLine], bool],
        stop: StopFlag,
    ) -> Iterator[Shard | _ResultLine]:
        """Each shard before its lines, so that its object is opened when the turn comes to its first line.

        Opened with the first of all, its connection could be idle for minutes, and servers cut those.
        """
        for index, shard in shards:
            yield shard
            yield from self._lines_of_shards(task, [(index, shard)], is_mine, stop)

    def _lines_of_shards(
        self,
        task: WriteFilesInput,
        shards: Iterable[tuple[int, Shard]],
        is_mine: Callable[[RequestLine], bool],
        stop: StopFlag,
    ) -> Iterator[_ResultLine]:
        for index, shard in shards:
            stop.check()
            attempt = task.attempts[index] if index < len(task.attempts) else None
            chunks = self._open_result(task.spec, index, attempt) if attempt else None
            if chunks is None:
                found = look_up(self._store, task.spec.tenant, task.spec.batch_id, index)
                if isinstance(found, Committed):
                    yield from self._lines_of_unfinished(task, shard, found, is_mine)
                    continue
                key = catalog.result_key(task.spec.tenant, task.spec.batch_id, index, found.attempt)
                chunks = self._store.stream(key)
            reader = RecordReader(chunks)
            reader.shard_head()
            for record in reader.records():
                yield _ResultLine(record.line, record.kind, record.usage, reader.line())

    def _open_result(self, spec: BatchSpec, shard: int, attempt: str) -> Iterator[bytes] | None:
        """The object that is to count; ``None`` if it is gone, and then the shard is as one that never finished."""
        try:
            return self._store.stream(catalog.result_key(spec.tenant, spec.batch_id, shard, attempt))
        except ObjectNotFound:
            return None

    def _lines_of_unfinished(
        self, task: WriteFilesInput, shard: Shard, committed: Committed, is_mine: Callable[[RequestLine], bool]
    ) -> Iterator[_ResultLine]:
        """A shard that was stopped: what is answered, and a line that says why for each of the rest.

        A part may vanish here, when an attempt that was thought dead ends the shard after all. Then this attempt
        fails, and the next finds the shard's object.
        """
        spec = task.spec
        lines = OutputLines(spec.batch_id)
        parts = PlaceReader(self._store, committed.places.values())
        chunks = self._store.stream(catalog.input_key(spec.tenant, spec.batch_id), shard.offset, shard.length)
        for line in read_lines(chunks, first_line=shard.first_line):
            if not line.data:
                continue
            record = committed.records.get(line.number)
            if record:
                place = committed.places[line.number]
                data = parts.read(Place(place.key, place.offset + len(record.head), record.length))
                yield _ResultLine(line.number, record.kind, record.usage, data)
            elif is_mine(request := parse_line(line.data)):
                missing = lines.missing(line.number, bytes(request.custom_id), task.missing)
                yield _ResultLine(line.number, "error", Usage(), iter([missing]))


def _is_of(plan: BatchPlan, upstream: int, request: RequestLine) -> bool:
    return plan.upstream(model_of(request.body)) == upstream


class _ResultLine(NamedTuple):
    number: int
    kind: Kind
    usage: Usage
    data: Iterator[bytes]


def _line_number(item: Shard | _ResultLine) -> int:
    return item.first_line if isinstance(item, Shard) else item.number


class _ResultFiles:
    """The two files of results while they are written. A file comes into being with its first line."""

    def __init__(self, store: ObjectStore, spec: BatchSpec, stack: ExitStack) -> None:
        self._store = store
        self._spec = spec
        self._stack = stack
        self._writers: dict[Kind, ObjectWriter] = {}
        self.count: dict[Kind, int] = {"output": 0, "error": 0}
        self.usage = Usage()

    def copy(self, line: _ResultLine) -> None:
        kind = line.kind
        writer = self._writers.get(kind)
        if writer is None:
            key = catalog.content_key(self._spec.tenant, self._file_id(kind))
            writer = self._writers[kind] = self._stack.enter_context(self._store.writer(key))
        for piece in line.data:
            writer.write(piece)
        self.count[kind] += 1
        if kind == "output":
            self.usage += line.usage

    def publish(self, files: Catalog, created_ms: int) -> dict[Literal["output", "error"], str | None]:
        """Make the files visible; their ids, ``None`` for one that has no line."""
        ids: dict[Kind, str | None] = {"output": None, "error": None}
        for kind, writer in self._writers.items():
            writer.commit()
            file_id = ids[kind] = self._file_id(kind)
            if published := files.find_file(self._spec.tenant, file_id):
                # By an attempt before this one: it keeps its time, and so its place in the list.
                created_ms = published.created_ms
            record = FileRecord(
                id=file_id,
                bytes=writer.size,
                created_ms=created_ms,
                filename=f"{self._spec.batch_id}_{kind}.jsonl",
                purpose="batch_output",
                expires_at=created_ms // 1000 + self._spec.output_expires_after,
            )
            files.save_file(self._spec.tenant, record)
        return ids

    def _file_id(self, kind: Kind) -> str:
        return result_file_id(self._spec.batch_id, kind)
