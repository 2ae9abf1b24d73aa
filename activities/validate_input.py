"""The activity that reads the input once: checks every line and cuts the file into shards."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Final, NamedTuple

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import catalog
from activities.batch_plan import BatchPlan
from activities.catalog import Catalog, FileRecord
from activities.in_thread import StopFlag, run_beside_heartbeats, run_in_thread
from activities.inference import InferenceClient, UpstreamUnavailable
from activities.jsonl import Line, read_lines
from activities.lenient_json import printable
from activities.model_routes import ModelRoutes, model_routes
from activities.request_rules import LineChecker
from activities.running_batches import RunningBatches
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

ASK_AGAIN: Final = timedelta(seconds=5)
ASK_AGAIN_AT_LAST: Final = timedelta(seconds=30)
"""Bounds of the growing wait until upstreams that did not answer are asked again for their models, where a batch
depends on it. Each time the input is copied and read anew."""


class ValidateInput(ValidateInputStub):
    def __init__(self, store: ObjectStore, clients: Sequence[InferenceClient]) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._running = RunningBatches(self._catalog)
        self._clients = clients

    @activity.defn(name=VALIDATE_INPUT)
    async def validate_input(self, spec: BatchSpec) -> ValidateResult:
        routes = await run_beside_heartbeats(model_routes(self._clients, any_model=spec.unknown_model == "line"))
        try:
            attempt = catalog.attempt_name(activity.info().attempt)
            return await run_in_thread(lambda stop: self._validate(spec, routes, attempt, stop))
        except UpstreamUnavailable as error:
            raise ApplicationError(
                f"the batch names {error}",
                type="UpstreamUnavailable",
                next_retry_delay=min(ASK_AGAIN * activity.info().attempt, ASK_AGAIN_AT_LAST),
                category=ApplicationErrorCategory.BENIGN,
            ) from None

    def _validate(self, spec: BatchSpec, routes: ModelRoutes, attempt: str, stop: StopFlag) -> ValidateResult:
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
        result, plan = scan_input(_until_stopped(chunks, stop), spec, routes)
        result = self._running.admit(spec, result)
        if not result.errors:
            if plan:
                result = result.model_copy(update={"plan": attempt})
                self._store.put(catalog.plan_key(spec.tenant, spec.batch_id, attempt), plan.dump())
            else:
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
    if record.is_expired(time.time()):
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


class Scanned(NamedTuple):
    result: ValidateResult
    plan: BatchPlan | None = None
    """Of a good input, where its requests are for several upstreams."""


def scan_input(chunks: Iterable[bytes], spec: BatchSpec, routes: ModelRoutes) -> Scanned:
    """Check every line of an input.

    Memory does not grow with the bytes of the input, only by some tens of bytes with its requests.

    Args:
        chunks: the input's bytes.
        spec: the batch, with its limits.
        routes: which upstream takes which model.

    Raises:
        UpstreamUnavailable: only upstreams that do not answer could say who takes a model.
    """
    checker = LineChecker(spec, routes)
    scan = _Scan()
    errors: list[BatchError] = []
    errors_total = 0
    for line in read_lines(chunks):
        scan.end = line.offset + line.length
        if line.data is not None and not line.data:
            continue
        if scan.requests >= spec.max_requests:
            scan.requests += 1  # the batch fails for them all; what their lines hold need not be remembered
            continue
        custom_id, error, upstream = checker.check(line)
        if error:
            errors_total += 1
            if len(errors) < MAX_ERRORS:
                errors.append(error)
        scan.add(line, custom_id, upstream)
    if not scan.requests:
        message = "The input file is empty. Please ensure that the batch contains at least one request."
        return Scanned(_failed([BatchError(code="empty_file", message=message)]))
    limit_errors = _limit_errors(scan.requests, checker.embedding_inputs, spec)
    errors_total += len(limit_errors)
    errors = [*limit_errors, *errors][:MAX_ERRORS]
    if errors:
        if errors_total > len(errors):
            last = errors[-1]
            more = f"{last.message} (The first {len(errors)} of {errors_total} errors are listed.)"
            errors[-1] = last.model_copy(update={"message": more})
        return Scanned(_failed(errors, errors_total))
    result = ValidateResult(
        model=checker.only_model,
        total=scan.requests,
        finished_at=int(time.time()),
        shards=scan.cut(),
        upstreams=[routes.name(place) for place in scan.upstreams],
        labels=scan.labels if scan.requests <= SINGLE_REQUESTS else [],
    )
    if len(scan.upstreams) == 1:
        return Scanned(result)
    numbers = {place: number for number, place in enumerate(scan.upstreams)}
    models = {model: numbers[place] for model, place in checker.models.items()}
    return Scanned(result, BatchPlan(result.shards, models, numbers.get(routes.stand_in, 0)))


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
        self._upstreams = array("H")

    def add(self, line: Line, label: str, upstream: int) -> None:
        self.requests += 1
        # A byte order mark is taken off the first line by its number, so it may stay inside the first shard.
        self._offsets.append(line.offset)
        self._lines.append(line.number)
        self._upstreams.append(upstream)
        if self.requests <= SINGLE_REQUESTS:
            self.labels.append(printable(label[:LABEL_LENGTH]))

    @property
    def upstreams(self) -> list[int]:
        """Places of those that the requests are for."""
        return sorted(set(self._upstreams))

    def cut(self) -> list[Shard]:
        """The shards, in the order of their first lines. Those of each upstream take turns with the others' only
        where its requests do.
        """
        places = self.upstreams
        if len(places) == 1:
            return list(self._cut(range(len(self._upstreams)), 0))
        shards: list[Shard] = []
        for number, place in enumerate(places):
            mine = [index for index, upstream in enumerate(self._upstreams) if upstream == place]
            shards += self._cut(mine, number)
        return sorted(shards, key=lambda shard: shard.first_line)

    def _cut(self, requests: Sequence[int], upstream: int) -> Iterator[Shard]:
        size = 1
        if self.requests > SINGLE_REQUESTS:
            size = max(MIN_SHARD_REQUESTS, math.ceil(self.requests / MAX_SHARDS))
        # An operator may allow inputs so large that shards of 16 MiB would be more than Temporal takes at once. The
        # shards of each upstream may span the whole input.
        most_bytes = max(MAX_SHARD_BYTES, math.ceil(self.end * len(self.upstreams) / MAX_SHARDS))
        first = 0
        for count, index in enumerate(requests, 1):
            start = self._offsets[requests[first]]
            is_last = count == len(requests)
            if is_last or count - first == size or self._end(requests[count]) - start > most_bytes:
                yield Shard(start, self._end(index) - start, self._lines[requests[first]], count - first, upstream)
                first = count

    def _end(self, request: int) -> int:
        """Of a request's line, with the blank ones behind it."""
        return self._offsets[request + 1] if request + 1 < len(self._offsets) else self.end
