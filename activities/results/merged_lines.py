"""Merges the committed answers of a batch's shards into result lines in input order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from activities.input.jsonl import read_lines, request_of
from activities.records import keys, shard_keys
from activities.records.catalog import Catalog
from activities.records.shard_keys import ShardRef
from activities.results.other_cuts import other_cuts
from activities.results.output_lines import OutputLines
from activities.results.records import RecordReader
from activities.results.shard_log import Committed, RangeReader, look_up
from activities.store.object_store import ObjectStore
from workflows.end_types import WriteFilesInput
from workflows.events import PastWait
from workflows.ids import ResultKind
from workflows.types import Shard, Usage

READ_BYTES: Final = 32 << 20
"""Maximum bytes in memory of all shards together, if they are read side by side."""


class ResultLine(NamedTuple):
    number: int
    kind: ResultKind
    usage: Usage
    data: Iterator[bytes]
    """The line in pieces. Read them before the next line is taken."""
    is_unanswered: bool = False
    is_kept: bool = False
    """Whether a retry takes it over from the batch that it retries."""
    gives_way: bool = False
    """Whether it is dropped if an earlier source has a result of the same line."""


def merged_by_line(sources: Iterable[Iterator[ResultLine]]) -> Iterator[ResultLine]:
    """Merge sources that are each in input order. For the same line, earlier sources come first."""
    last = 0
    for line in heapq.merge(*sources, key=lambda line: line.number):
        if not (line.gives_way and line.number == last):
            yield line
        last = line.number


class _Source(NamedTuple):
    """A shard, and the attempt whose shard object is used, if there is one."""

    ref: ShardRef
    shard: Shard
    attempt: str | None
    is_reported: bool
    """Whether the workflow has received the result of this attempt."""
    is_of_other_cut: bool = False


class MergedLines:
    """The merged result lines of one batch. All calls block.

    Raises:
        ObjectNotFoundError: an object was deleted meanwhile: either the batch has been ended elsewhere, or another
            attempt has finished a shard, and the next merge finds its shard object.
    """

    def __init__(self, store: ObjectStore, task: WriteFilesInput, digest: str) -> None:
        """Args: ``digest`` is the digest of the cut whose shards are merged."""
        self._store = store
        self._task = task
        self._digest = digest
        self._input_key = keys.input_key(task.spec.ref)
        self.cut = Catalog(store).get_cut(task.spec.ref, digest)
        self.waits: list[PastWait] = []
        """Waits of shards whose results the workflow does not have. Complete once all lines are read."""

    def lines(self) -> Iterator[ResultLine]:
        """Yield a line for each request: its committed result, from this cut or else another one, or an error line
        with the reason why there is none.
        """
        sources = self._sources()
        all_finished = all(source.attempt for source in sources)
        others = [] if all_finished else self._sources_of_other_cuts()
        if not self.cut.order and not others:
            return chain.from_iterable(map(self._of_shard, sources))
        # Any shard may have the next line, so all are read side by side in small pieces: the server would close
        # connections that are idle meanwhile, and full chunks of hundreds of shards would not fit into memory.
        read_bytes = READ_BYTES // (len(sources) + len(others))
        answers = merged_by_line([self._committed(source, read_bytes) for source in (*sources, *others)])
        return answers if all_finished else self._filled(answers, 0, None, 1)

    def _sources(self) -> list[_Source]:
        task, found = self._task, dict[int, list[str]]()
        prefix = shard_keys.results_of_cut_prefix(task.spec.ref, self._digest)
        for key in self._store.list(prefix):
            number, attempt = key.removeprefix(prefix).split("/")
            found.setdefault(int(number), []).append(attempt)
        sources: list[_Source] = []
        for index, shard in enumerate(self.cut.shards):
            ref = ShardRef(task.spec.ref, self._digest, index)
            reported = task.attempts[index] if task.cut and index < len(task.attempts) else None
            attempts = found.get(index, [None])
            is_reported = reported is not None and reported in attempts
            # If the object of the reported attempt is gone, the shard is treated as if it had never finished.
            sources.append(_Source(ref, shard, reported if is_reported else attempts[0], is_reported))
        return sources

    def _sources_of_other_cuts(self) -> list[_Source]:
        ref = self._task.spec.ref
        return [
            _Source(ShardRef(ref, digest, number), shard, None, is_reported=False, is_of_other_cut=True)
            for digest, cut in other_cuts(self._store, ref, self._digest)
            for number, shard in enumerate(cut.shards)
        ]

    def _of_shard(self, source: _Source) -> Iterator[ResultLine]:
        """Yield the lines of a shard that is a range of input lines."""
        lines, shard = self._committed(source), source.shard
        return lines if source.attempt else self._filled(lines, shard.offset, shard.length, shard.first_line)

    def _committed(self, source: _Source, read_bytes: int | None = None) -> Iterator[ResultLine]:
        """Yield the committed lines of a shard.

        Args: ``read_bytes`` is the maximum in memory at once; ``None`` for the chunks of the store.
        """
        attempt = source.attempt
        if not attempt:
            found = look_up(self._store, source.ref)
            if isinstance(found, Committed):
                if not source.is_of_other_cut:
                    self.waits += found.waits
                yield from self._of_parts(source, found, read_bytes)
                return
            attempt = found.attempt
        key = shard_keys.result_key(source.ref, attempt)
        reader = RecordReader(self._pieces(key, read_bytes) if read_bytes else self._store.stream(key))
        reader.shard_head()
        for record in reader.records():
            yield ResultLine(record.line, record.kind, record.usage, reader.line(), gives_way=source.is_of_other_cut)
        if not (source.is_reported or source.is_of_other_cut):
            self.waits += reader.waits

    def _of_parts(self, source: _Source, found: Committed, keep_bytes: int | None) -> Iterator[ResultLine]:
        """Yield lines from parts, which may be deleted meanwhile if an attempt that seemed lost finishes the shard."""
        reader = RangeReader(self._store, found.ranges.values(), keep_bytes)
        for number, record in sorted(found.records.items()):
            data = reader.read(found.body(number))
            yield ResultLine(number, record.kind, record.usage, data, gives_way=source.is_of_other_cut)

    def _pieces(self, key: str, size: int) -> Iterator[bytes]:
        offset = 0
        while piece := b"".join(self._store.stream(key, offset, size)):
            yield piece
            offset += len(piece)
            if len(piece) < size:
                return

    def _filled(
        self, lines: Iterator[ResultLine], offset: int, length: int | None, first_line: int
    ) -> Iterator[ResultLine]:
        """Yield ``lines``, and an error line for each request in a range of the input that has none among them."""
        spec, output = self._task.spec, OutputLines(self._task.spec.batch_id)
        # The first line looks up all shards: if the input still exists afterwards, so did their objects.
        line = next(lines, None)
        chunks = self._store.stream(self._input_key, offset, length)
        for request in read_lines(chunks, spec.max_line_bytes, first_line=first_line):
            has_result = False
            while line and line.number <= request.number:
                has_result |= line.number == request.number
                yield line
                line = next(lines, None)
            if not has_result:
                custom_id = bytes(request_of(request).custom_id)
                missing = output.missing(request.number, custom_id, self._task.missing)
                yield ResultLine(request.number, "error", Usage(), iter([missing]), is_unanswered=True)
        while line:
            yield line
            line = next(lines, None)
