"""The activity that ends every batch: merges committed answers into the result files and writes the final record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Literal

from temporalio import activity

from activities import catalog
from activities.catalog import Catalog, FileRecord
from activities.in_thread import StopFlag, run_in_thread
from activities.jsonl import parse_line, read_lines
from activities.output_lines import OutputLines
from activities.results import Committed, Kind, RecordReader, look_up
from activities.storage import ObjectNotFound, ObjectStore, ObjectWriter, StoreError
from workflows.contract import WRITE_FILES, WriteFilesStub
from workflows.ids import result_file_id
from workflows.types import (
    BatchPhase,
    BatchRecord,
    BatchSpec,
    BatchStatus,
    Counts,
    MissingReason,
    Shard,
    Usage,
    WriteFilesInput,
)

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
            status = task.status
            if status.counts.total:
                status = self._merge(task, stop)
            end = {"phase": task.outcome, _END_TIMES[task.outcome]: int(time.time())}
            final = BatchRecord(spec=spec, status=status.model_copy(update=end))
            self._catalog.save_final(final)
        # Only now: the record is what tells an attempt after a crash that all of this is no longer needed.
        self._catalog.delete_leftovers(spec.tenant, spec.batch_id)
        return final.status

    def _merge(self, task: WriteFilesInput, stop: StopFlag) -> BatchStatus:
        spec = task.spec
        with ExitStack() as stack:
            files = _ResultFiles(self._store, spec, stack)
            shards = self._catalog.get_shards(spec.tenant, spec.batch_id)
            for index, shard in enumerate(shards):
                stop.check()
                attempt = task.attempts[index] if index < len(task.attempts) else None
                self._merge_shard(files, spec, task.missing, index, shard, attempt)
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

    def _merge_shard(
        self,
        files: _ResultFiles,
        spec: BatchSpec,
        missing: MissingReason,
        index: int,
        shard: Shard,
        attempt: str | None,
    ) -> None:
        chunks = self._open_result(spec, index, attempt) if attempt else None
        if chunks is None:
            found = look_up(self._store, spec.tenant, spec.batch_id, index)
            if isinstance(found, Committed):
                self._merge_unfinished(files, spec, missing, shard, found)
                return
            chunks = self._store.stream(catalog.result_key(spec.tenant, spec.batch_id, index, found.attempt))
        reader = RecordReader(chunks)
        reader.shard_head()
        for record in reader.records():
            files.copy(record.kind, record.usage, reader.line())

    def _open_result(self, spec: BatchSpec, shard: int, attempt: str) -> Iterator[bytes] | None:
        """The object that is to count; ``None`` if it is gone, and then the shard is as one that never finished."""
        try:
            return self._store.stream(catalog.result_key(spec.tenant, spec.batch_id, shard, attempt))
        except ObjectNotFound:
            return None

    def _merge_unfinished(
        self, files: _ResultFiles, spec: BatchSpec, missing: MissingReason, shard: Shard, committed: Committed
    ) -> None:
        """A shard that was stopped: what is answered, and a line that says why for each of the rest.

        A part may vanish here, when an attempt that was thought dead ends the shard after all. Then this attempt
        fails, and the next finds the shard's object.
        """
        lines = OutputLines(spec.batch_id)
        chunks = self._store.stream(catalog.input_key(spec.tenant, spec.batch_id), shard.offset, shard.length)
        for line in read_lines(chunks, first_line=shard.first_line):
            if not line.data:
                continue
            record = committed.records.get(line.number)
            if record:
                place = committed.places[line.number]
                offset, length = place.offset + len(record.head), record.length
                files.copy(record.kind, record.usage, self._store.stream(place.key, offset, length))
            else:
                custom_id = bytes(parse_line(line.data).custom_id)
                files.copy("error", Usage(), iter([lines.missing(line.number, custom_id, missing)]))


class _ResultFiles:
    """The two files of results while they are written. A file comes into being with its first line."""

    def __init__(self, store: ObjectStore, spec: BatchSpec, stack: ExitStack) -> None:
        self._store = store
        self._spec = spec
        self._stack = stack
        self._writers: dict[Kind, ObjectWriter] = {}
        self.count: dict[Kind, int] = {"output": 0, "error": 0}
        self.usage = Usage()

    def copy(self, kind: Kind, usage: Usage, line: Iterator[bytes]) -> None:
        writer = self._writers.get(kind)
        if writer is None:
            key = catalog.content_key(self._spec.tenant, self._file_id(kind))
            writer = self._writers[kind] = self._stack.enter_context(self._store.writer(key))
        for piece in line:
            writer.write(piece)
        self.count[kind] += 1
        if kind == "output":
            self.usage += usage

    def publish(self, files: Catalog, created_ms: int) -> dict[Literal["output", "error"], str | None]:
        """Make the files visible; their ids, ``None`` for one that has no line."""
        ids: dict[Kind, str | None] = {"output": None, "error": None}
        for kind, writer in self._writers.items():
            writer.commit()
            file_id = ids[kind] = self._file_id(kind)
            with contextlib.suppress(ObjectNotFound):
                # Published by an attempt before this one: it keeps its time, and so its place in the list.
                created_ms = files.get_file(self._spec.tenant, file_id).created_ms
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
