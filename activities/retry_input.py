"""The input of a retry: that of the first batch, with all lines blanked that are not sent again.

So a request keeps its line number, and the retry's result files are merged by line number: from its own lines, and from
those of the first batch's files whose requests it does not send again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from pydantic import BaseModel

from activities.input_addresses import is_address
from activities.records import keys
from activities.records.catalog import Catalog, FileRecord
from activities.results.error_lines import ErrorTally, read_error
from activities.results.output_lines import result_lines
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from workflows.error_summary import ErrorCount
from workflows.ids import BatchRef, ResultKind
from workflows.types import BatchRecord, BatchSpec, Counts

KINDS: Final[tuple[ResultKind, ResultKind]] = ("output", "error")
_COUNTS: Final = "counts"


class RetryGoneError(Exception):
    """A file or record that a retry needs no longer exists; the message says which, as the end of a sentence."""


class Kept(BaseModel):
    """Counts and errors of the requests whose results a retry takes over."""

    counts: Counts
    errors: list[ErrorCount]


class RetriedLines(NamedTuple):
    is_retried: bytearray
    """A 1 at the number of each line that is retried."""
    codes: Counter[str]
    """Number of failed requests of the first batch by error code."""
    kept: ErrorTally
    """Errors of the requests that are not retried."""
    requests: int
    """Number of requests that are retried."""


class RetryInput:
    """Copies for a retry what it takes over from the batch that it retries. All calls block.

    Raises:
        RetryGoneError: from every method, when a file or record that is needed no longer exists.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._store = catalog.store

    def check(self, first: BatchRecord) -> None:
        """Check that all files that the retry needs still exist."""
        if is_address(first.spec.input_file_id):
            raise RetryGoneError(
                f"its input was read from {first.spec.input_file_id}, which may hold something else by now"
            )
        for file_id, name in (
            (first.spec.input_file_id, "input"),
            (first.status.output_file_id, "output"),
            (first.status.error_file_id, "error"),
        ):
            if file_id:
                self._file(first.spec.tenant, file_id, name)

    def retried(self, first: BatchRecord, codes: list[str]) -> RetriedLines:
        """Return the failed lines of an ended batch that have one of these error codes; without codes, all of them."""
        tenant, file_id = first.spec.tenant, first.status.error_file_id
        found = RetriedLines(bytearray(), Counter(), ErrorTally(), 0)
        if not file_id:
            return found
        self._file(tenant, file_id, "error")
        is_retried, wanted, count = found.is_retried, set(codes), 0
        for number, line in result_lines(self._read(tenant, file_id, "error")):
            code = read_error(line).code
            found.codes[code] += 1
            if not codes or code in wanted:
                is_retried.extend(bytes(number + 1 - len(is_retried)))
                is_retried[number] = 1
                count += 1
            else:
                found.kept.add(number, code)
        return found._replace(requests=count)

    def copy(self, spec: BatchSpec) -> None:
        """Copy everything that a retry takes over, because files may be deleted while it runs. Its input comes last.

        May be repeated: it overwrites the copies of an earlier attempt with the same content.
        """
        first = self._first(spec)
        self.check(first)
        lines = self.retried(first, spec.retry_codes)
        files = (first.status.output_file_id, first.status.error_file_id)
        for kind, file_id in zip(KINDS, files, strict=True):
            if file_id:
                try:
                    target = keys.kept_key(spec.ref, kind)
                    self._store.copy(keys.content_key(spec.tenant, file_id), target)
                except ObjectNotFoundError:
                    raise _gone(kind, file_id) from None
        counts = Counts(
            total=first.status.counts.total - lines.requests,
            completed=first.status.counts.completed,
            failed=first.status.counts.failed - lines.requests,
        )
        kept = Kept(counts=counts, errors=lines.kept.summary())
        self._store.put(keys.kept_key(spec.ref, _COUNTS), kept.model_dump_json().encode())
        source = self._read(spec.tenant, first.spec.input_file_id, "input")
        with self._store.writer(keys.input_key(spec.ref)) as writer:
            for piece in _blanked(source, lines.is_retried):
                writer.write(piece)
            writer.commit()

    def kept(self, spec: BatchSpec) -> Kept:
        """Return the counts and errors that a retry takes over. Its copies must exist."""
        return Kept.model_validate_json(self._store.get(keys.kept_key(spec.ref, _COUNTS)))

    def _first(self, spec: BatchSpec) -> BatchRecord:
        first = self._catalog.get_final(BatchRef(spec.tenant, spec.retry_of))
        if first is None:
            raise RetryGoneError(f"the record of batch {spec.retry_of} no longer exists")
        return first

    def _file(self, tenant: str, file_id: str, name: str) -> FileRecord:
        record = self._catalog.find_file(tenant, file_id)
        if record is None or record.is_expired(time.time()):
            raise _gone(name, file_id)
        return record

    def _read(self, tenant: str, file_id: str, name: str) -> Iterator[bytes]:
        try:
            return self._store.stream(keys.content_key(tenant, file_id))
        except ObjectNotFoundError:
            raise _gone(name, file_id) from None


def kept_lines(store: ObjectStore, spec: BatchSpec, kind: ResultKind) -> Iterator[tuple[int, bytes]]:
    """Return the lines of the retry's copy of a result file of the first batch, with their line numbers."""
    try:
        chunks = store.stream(keys.kept_key(spec.ref, kind))
    except ObjectNotFoundError:  # the first batch had no such file
        return iter(())
    return result_lines(chunks)


def _gone(name: str, file_id: str) -> RetryGoneError:
    return RetryGoneError(f"its {name} file {file_id} was deleted or has expired")


def _blanked(chunks: Iterator[bytes], is_retried: bytearray) -> Iterator[bytes]:
    """Yield an input with all lines blanked that are not retried. Line breaks remain, so line numbers do not change."""
    number = 1
    for chunk in chunks:
        pieces: list[bytes] = []
        start = 0
        while start < len(chunk):
            end = chunk.find(b"\n", start) + 1
            is_wanted = number < len(is_retried) and is_retried[number]
            if is_wanted:
                pieces.append(chunk[start : end or len(chunk)])
            elif end:
                pieces.append(b"\n")
            number += bool(end)
            start = end or len(chunk)
        yield b"".join(pieces)
