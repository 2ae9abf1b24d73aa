"""The activity that reads the input once: checks every line and cuts the file into shards."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from temporalio import activity

from activities import catalog
from activities.catalog import Catalog, FileRecord
from activities.in_thread import StopFlag, run_beside_heartbeats, run_in_thread
from activities.inference import InferenceClient
from activities.jsonl import Line, read_lines
from activities.lenient_json import printable
from activities.request_rules import LineChecker
from activities.storage import ObjectNotFound, ObjectStore
from workflows.contract import VALIDATE_INPUT, ValidateInputStub
from workflows.types import BatchError, BatchPhase, BatchRecord, BatchSpec, BatchStatus, Counts, Shard, ValidateResult

MAX_ERRORS: Final = 100
"""Reported; the total is said beside them."""

SINGLE_REQUESTS: Final = 500
"""Up to so many requests each is an activity of its own, for people to look at."""
MAX_SHARDS: Final = 500
MIN_SHARD_REQUESTS: Final = 100
MAX_SHARD_BYTES: Final = 16 << 20

LABEL_LENGTH: Final = 100


class ValidateInput(ValidateInputStub):
    def __init__(self, store: ObjectStore, client: InferenceClient) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._client = client

    @activity.defn(name=VALIDATE_INPUT)
    async def validate_input(self, spec: BatchSpec) -> ValidateResult:
        known_models = None
        if spec.unknown_model == "batch":
            known_models = await run_beside_heartbeats(self._client.list_models())
        return await run_in_thread(lambda stop: self._validate(spec, known_models, stop))

    def _validate(self, spec: BatchSpec, known_models: frozenset[str] | None, stop: StopFlag) -> ValidateResult:
        # Once more what the API does: it may have been killed between starting this run and writing its record.
        self._catalog.create_batch(spec)
        try:
            record = self._catalog.get_file(spec.tenant, spec.input_file_id)
            if error := _file_error(record, spec):
                return _failed([error])
            self._store.copy(catalog.content_key(spec.tenant, record.id), catalog.input_key(spec.tenant, spec.batch_id))
            chunks = self._store.stream(catalog.input_key(spec.tenant, spec.batch_id))
        except ObjectNotFound:
            return _failed([_missing_file(spec)])
        result = scan_input(_until_stopped(chunks, stop), spec, known_models)
        if not result.errors:
            self._catalog.save_shards(spec.tenant, spec.batch_id, result.shards)
            status = BatchStatus(
                phase=BatchPhase.IN_PROGRESS,
                counts=Counts(total=result.total),
                model=result.model,
                in_progress_at=result.finished_at,
                shards_total=len(result.shards),
            )
            self._catalog.save_running(BatchRecord(spec=spec, status=status))
        return result


def _until_stopped(chunks: Iterator[bytes], stop: StopFlag) -> Iterator[bytes]:
    for chunk in chunks:
        stop.check()
        yield chunk


def _failed(errors: list[BatchError], total: int = 0) -> ValidateResult:
    return ValidateResult(errors=errors, errors_total=total or len(errors), finished_at=int(time.time()))


def _missing_file(spec: BatchSpec) -> BatchError:
    message = f"Cannot find file {spec.input_file_id[:64]}, or organization {spec.tenant} does not have access to it."
    return BatchError(code="invalid_request", message=message, param="file_id")


def _file_error(record: FileRecord, spec: BatchSpec) -> BatchError | None:
    if record.expires_at is not None and record.expires_at <= time.time():
        return _missing_file(spec)
    if record.purpose != "batch":
        message = f"The file's purpose is '{record.purpose}'; a batch needs one of purpose 'batch'."
        return BatchError(code="invalid_request", message=message, param="file_id")
    if record.bytes > spec.max_input_bytes:
        message = (
            f"The batch input file is larger than the {spec.max_input_bytes} maximum for the model. "
            f"It has {record.bytes} bytes."
        )
        return BatchError(code="invalid_request", message=message, param="file_id")
    return None


def scan_input(chunks: Iterable[bytes], spec: BatchSpec, known_models: frozenset[str] | None) -> ValidateResult:
    """Check every line of an input.

    Memory does not grow with the bytes of the input, only by some tens of bytes with its requests.

    Args:
        chunks: the input's bytes.
        spec: the batch, with its limits.
        known_models: what the upstream lists; ``None`` where it could not be asked, and then any model passes.
    """
    checker = LineChecker(spec, known_models)
    scan = _Scan()
    errors: list[BatchError] = []
    errors_total = 0
    for line in read_lines(chunks):
        scan.end = line.offset + line.length
        if line.data is not None and not line.data:
            continue
        custom_id, error = checker.check(line)
        if error:
            errors_total += 1
            if len(errors) < MAX_ERRORS:
                errors.append(error)
        scan.add(line, custom_id, spec.max_requests)
    if not scan.requests:
        message = "The input file is empty. Please ensure that the batch contains at least one request."
        return _failed([BatchError(code="empty_file", message=message)])
    limit_errors = _limit_errors(scan.requests, checker.embedding_inputs, spec)
    errors_total += len(limit_errors)
    errors = [*limit_errors, *errors][:MAX_ERRORS]
    if errors:
        if errors_total > len(errors):
            last = errors[-1]
            more = f"{last.message} (The first {len(errors)} of {errors_total} errors are listed.)"
            errors[-1] = last.model_copy(update={"message": more})
        return _failed(errors, errors_total)
    return ValidateResult(
        model=checker.only_model,
        total=scan.requests,
        finished_at=int(time.time()),
        shards=scan.cut(),
        labels=scan.labels if scan.requests <= SINGLE_REQUESTS else [],
    )


def _limit_errors(requests: int, embedding_inputs: int, spec: BatchSpec) -> list[BatchError]:
    errors: list[BatchError] = []
    if requests > spec.max_requests:
        message = f"The input file has {requests} requests; a batch may have at most {spec.max_requests}."
        errors.append(BatchError(code="too_many_tasks", message=message))
    if embedding_inputs > spec.max_requests:
        message = f"The input file has {embedding_inputs} embedding inputs; at most {spec.max_requests} may be."
        errors.append(BatchError(code="too_many_tasks", message=message))
    return errors


class _Scan:
    """Where the requests are. How many share a shard depends on how many there are, known only at the end."""

    def __init__(self) -> None:
        self.requests = 0
        self.end = 0
        self.labels: list[str] = []
        self._offsets = array("Q")
        self._lines = array("Q")

    def add(self, line: Line, label: str, max_requests: int) -> None:
        self.requests += 1
        if self.requests > max_requests:
            return
        # A byte order mark is taken off the first line by its number, so it may stay inside the first shard.
        self._offsets.append(line.offset)
        self._lines.append(line.number)
        if self.requests <= SINGLE_REQUESTS:
            self.labels.append(printable(label[:LABEL_LENGTH]))

    def cut(self) -> list[Shard]:
        size = 1
        if self.requests > SINGLE_REQUESTS:
            size = max(MIN_SHARD_REQUESTS, math.ceil(self.requests / MAX_SHARDS))
        # An operator may allow inputs so large that shards of 16 MiB would be more than Temporal takes at once.
        most_bytes = max(MAX_SHARD_BYTES, math.ceil(self.end / MAX_SHARDS))
        shards: list[Shard] = []
        first = 0
        for index in range(1, self.requests + 1):
            end = self._offsets[index] if index < self.requests else self.end
            next_end = self._offsets[index + 1] if index + 1 < self.requests else self.end
            offset = self._offsets[first]
            is_last = index == self.requests
            if is_last or index - first == size or next_end - offset > most_bytes:
                shards.append(Shard(offset, end - offset, self._lines[first], index - first))
                first = index
        return shards
