"""The activity that merges the committed answers of a batch into its result files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from temporalio import activity

from activities.heartbeats import StopFlag, run_beside_heartbeats, run_in_thread
from activities.per_tenant import AT_ONCE_PER_TENANT, PerTenant
from activities.records import keys
from activities.records.catalog import Catalog, FileRecord
from activities.records.cuts import LineDigest
from activities.records.shard_keys import answers_prefixes
from activities.results.error_lines import ErrorTally, read_error
from activities.results.merged_lines import MergedLines, ResultLine, merged_by_line
from activities.results.other_cuts import SETTLE_SECONDS
from activities.retry_input import KINDS, RetryInput, kept_lines
from activities.store.object_store import ObjectNotFoundError, ObjectStore, ObjectWriter, StoreError
from workflows.contract import WRITE_FILES, WriteFilesStub
from workflows.end_types import MergedFiles, WriteFilesInput
from workflows.events import MAX_WAITS, merge_waits
from workflows.ids import ResultKind, result_file_id
from workflows.types import BatchError, BatchSpec, Counts, Usage

log = logging.getLogger("everbatch.write_files")

MERGE_TIMES: Final = 3
"""Number of merges without exactly one line for each request after which the files are given up."""


class MergeError(Exception):
    """The committed answers are not at most one for each request: objects are missing or damaged. Nothing was
    published.
    """


class WriteFiles(WriteFilesStub):
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._retry = RetryInput(self._catalog)
        self._turns = PerTenant(AT_ONCE_PER_TENANT)

    @activity.defn(name=WRITE_FILES)
    async def write_files(self, task: WriteFilesInput) -> MergedFiles:
        if not task.is_checked and await asyncio.to_thread(self._was_checked, task.spec):
            await run_beside_heartbeats(asyncio.sleep(SETTLE_SECONDS))
        async with self._turns.turn(task.spec.tenant):
            return await run_in_thread(lambda stop: self._write(task, stop))

    def _was_checked(self, spec: BatchSpec) -> bool:
        """Return whether an earlier run has validated the input."""
        return bool(self._catalog.cuts(spec.ref))

    def _write(self, task: WriteFilesInput, stop: StopFlag) -> MergedFiles:
        spec = task.spec
        if final := self._catalog.get_final(spec.ref):
            return MergedFiles(counts=final.status.counts)  # its files are written, and its final record is used
        try:
            return self._merge_again(task, stop)
        except MergeError as error:
            log.error("the result files of batch %s cannot be written: %s", spec.batch_id, error)
            reason = f"The result files cannot be written: {error}. What was answered stays in the store for a while."
            return MergedFiles(errors=[BatchError(code="results_incomplete", message=reason)])

    def _merge_again(self, task: WriteFilesInput, stop: StopFlag) -> MergedFiles:
        """Call :meth:`_merge`, repeatedly if objects change meanwhile: an attempt at a shard that seemed lost may still
        finish it.
        """
        for _ in range(MERGE_TIMES - 1):
            with contextlib.suppress(MergeError):
                return self._merge(task, stop)
        return self._merge(task, stop)

    def _merge(self, task: WriteFilesInput, stop: StopFlag) -> MergedFiles:
        """Publish the result files of a batch.

        Raises:
            MergeError: there is not exactly one line for each request.
        """
        ref = task.spec.ref
        try:
            if task.cut:
                return self._merge_cut(task, task.cut, stop)
            has_answers = any(True for prefix in answers_prefixes(ref) for _ in self._store.list(prefix))
            if not has_answers and (task.is_checked or not self._was_checked(task.spec)):
                return MergedFiles()  # none of its requests was ever sent
            merged = self._merge_cut(task, next(iter(self._catalog.cuts(ref)), "missing"), stop)
            before = self._catalog.get_batch(ref).status
            return merged.model_copy(update={"model": before.model, "in_progress_at": before.in_progress_at})
        except (ObjectNotFoundError, MergeError) as error:
            if self._catalog.get_final(ref):
                raise StoreError("another attempt has ended the batch") from None  # the next attempt finds its record
            if isinstance(error, MergeError):
                raise
            raise MergeError(f"the store has no {error} any more") from None

    def _merge_cut(self, task: WriteFilesInput, digest: str, stop: StopFlag) -> MergedFiles:
        spec = task.spec
        merged = MergedLines(self._store, task, digest)
        cut = merged.cut
        with ExitStack() as stack:
            files, numbers, before = _ResultFiles(self._store, spec, stack), LineDigest(), 0
            for line in self._with_kept(spec, merged.lines()):
                stop.check()
                if line.number <= before:
                    raise MergeError(f"line {line.number} of the input has two results, or one out of order")
                before = line.number
                if not line.is_kept:
                    numbers.add(line.number)
                files.copy(line)
            total = cut.total + (self._retry.kept(spec).counts.total if spec.retry_of else 0)
            counts = Counts(
                total=total,
                completed=files.count["output"],
                failed=files.count["error"],
                unanswered=files.unanswered,
            )
            if counts.completed + counts.failed != counts.total:
                raise MergeError(f"{counts.completed} + {counts.failed} result lines for {counts.total} requests")
            if numbers.value != cut.lines:
                raise MergeError("the lines that have results are not the lines that are requests")
            if self._catalog.get_final(spec.ref):
                raise StoreError("another attempt has ended the batch")  # the next attempt finds its record
            ids = files.publish(self._catalog, time.time_ns() // 1_000_000)
        return MergedFiles(
            counts=counts,
            usage=files.usage,
            error_summary=files.errors.summary(),
            waits=merge_waits(merged.waits, MAX_WAITS)[0],
            output_file_id=ids["output"],
            error_file_id=ids["error"],
        )

    def _with_kept(self, spec: BatchSpec, lines: Iterator[ResultLine]) -> Iterator[ResultLine]:
        """Add to a retry's own lines those that it takes over from the first batch. Its own lines replace errors."""
        return merged_by_line([lines, *(self._kept(spec, kind) for kind in KINDS)]) if spec.retry_of else lines

    def _kept(self, spec: BatchSpec, kind: ResultKind) -> Iterator[ResultLine]:
        for number, line in kept_lines(self._store, spec, kind):
            yield ResultLine(number, kind, Usage(), iter([line]), is_kept=True, gives_way=kind == "error")


class _ResultFiles:
    """Writes the two result files. A file is created with its first line."""

    def __init__(self, store: ObjectStore, spec: BatchSpec, stack: ExitStack) -> None:
        self._store = store
        self._spec = spec
        self._stack = stack
        self._writers: dict[ResultKind, ObjectWriter] = {}
        self.count: dict[ResultKind, int] = {"output": 0, "error": 0}
        self.unanswered = 0
        self.usage = Usage()
        self.errors = ErrorTally()

    def copy(self, line: ResultLine) -> None:
        kind = line.kind
        writer = self._writers.get(kind)
        if writer is None:
            key = keys.content_key(self._spec.tenant, self._file_id(kind))
            writer = self._writers[kind] = self._stack.enter_context(self._store.writer(key))
        if kind == "error":
            data = b"".join(line.data)
            self.errors.add(line.number, read_error(data).code)
            writer.write(data)
        for piece in line.data:
            writer.write(piece)
        self.count[kind] += 1
        self.unanswered += line.is_unanswered
        if kind == "output":
            self.usage += line.usage

    def publish(self, files: Catalog, created_ms: int) -> dict[ResultKind, str | None]:
        """Publish the files. Returns their ids, with ``None`` for a file without lines."""
        ids: dict[ResultKind, str | None] = {"output": None, "error": None}
        for kind, writer in self._writers.items():
            writer.commit()
            file_id = ids[kind] = self._file_id(kind)
            if published := files.find_file(self._spec.tenant, file_id):
                # An earlier attempt has published the file: it keeps its time, and so its place in the list.
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

    def _file_id(self, kind: ResultKind) -> str:
        return result_file_id(self._spec.batch_id, kind)
