"""Reading an input once: every line is checked, and the whole is cut into shards."""

from __future__ import annotations

import bisect
import math
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple

from activities.input.encodings import file_error
from activities.input.jsonl import Line, read_lines
from activities.input.request_rules import NOT_JSON, LineChecker
from activities.records.cuts import Cut, LineDigest
from activities.upstreams.routes import ModelRoutes
from workflows.types import BatchError, BatchSpec, Shard, ValidateResult

MAX_ERRORS: Final = 100
"""Reported; the total is said beside them."""

SINGLE_REQUESTS: Final = 50
"""Up to so many requests each is an activity of its own, for people to look at."""
GROUPED_REQUESTS: Final = 5_000
"""Up to so many they run in groups that a person can still take in …"""
GROUP_REQUESTS: Final = 32
MAX_SHARDS: Final = 500
MIN_SHARD_REQUESTS: Final = 250
"""… and beyond that in groups that cost little each."""
MAX_SHARD_BYTES: Final = 16 << 20

LABEL_LENGTH: Final = 100
GROUP_LABEL_LENGTH: Final = 40


def failed(errors: list[BatchError], total: int = 0) -> ValidateResult:
    return ValidateResult(errors=errors, errors_total=total or len(errors), finished_at=int(time.time()))


class Scanned(NamedTuple):
    result: ValidateResult
    cut: Cut | None = None
    """Of a good input, but for the digest of its bytes."""


def scan_input(chunks: Iterable[bytes], spec: BatchSpec, routes: ModelRoutes) -> Scanned:
    """Check every line of an input.

    Memory does not grow with the bytes of the input, only by some tens of bytes with its requests.

    Args:
        chunks: the input's bytes.
        spec: the batch, with its limits.
        routes: which upstream takes which model.

    Raises:
        UpstreamUnavailableError: only upstreams that do not answer could say who takes a model.
    """
    checker = LineChecker(spec, routes)
    scan = _Scan()
    errors: list[BatchError] = []
    errors_total = 0
    chunks = iter(chunks)
    head = next(chunks, b"")
    if message := file_error(head):
        return Scanned(failed([BatchError(code=NOT_JSON, message=message)]))
    for line in read_lines(chain((head,), chunks), spec.max_line_bytes):
        scan.end = line.offset + line.length
        if scan.requests >= spec.max_requests:
            scan.requests += 1
            break  # the batch fails for them all
        custom_id, error, upstream = checker.check(line)
        if error:
            errors_total += 1
            if len(errors) < MAX_ERRORS:
                errors.append(error)
        scan.add(line, custom_id, upstream)
    if not scan.requests:
        message = "The input file is empty. Please ensure that the batch contains at least one request."
        return Scanned(failed([BatchError(code="empty_file", message=message)]))
    limit_errors = _limit_errors(scan.requests, checker.embedding_inputs, spec)
    errors_total += len(limit_errors)
    errors = [*limit_errors, *errors][:MAX_ERRORS]
    if errors:
        if errors_total > len(errors):
            last = errors[-1]
            more = f"{last.message} (The first {len(errors)} of {errors_total} errors are listed.)"
            errors[-1] = last.model_copy(update={"message": more})
        return Scanned(failed(errors, errors_total))
    shards = scan.cut()
    result = ValidateResult(
        model=checker.only_model,
        total=scan.requests,
        finished_at=int(time.time()),
        shards=shards,
        upstreams=[routes.name(index) for index in scan.upstreams],
        labels=scan.labels(shards),
    )
    cut = Cut(input="", lines=scan.lines_digest(), shards=result.shards, upstreams=result.upstreams, models={}, rest=0)
    if len(scan.upstreams) > 1:
        numbers = {index: number for number, index in enumerate(scan.upstreams)}
        models = {model: numbers[index] for model, index in checker.models.items()}
        cut = cut._replace(models=models, rest=numbers.get(routes.default_upstream, 0))
    return Scanned(result, cut)


def _limit_errors(requests: int, embedding_inputs: int, spec: BatchSpec) -> list[BatchError]:
    errors: list[BatchError] = []
    if requests > spec.max_requests:
        message = f"The input file has more than {spec.max_requests} requests, the most that a batch may have."
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
        self._ids: list[str] = []
        self._offsets = array("Q")
        self._lines = array("Q")
        self._upstreams = array("H")

    def add(self, line: Line, label: str, upstream: int) -> None:
        self.requests += 1
        # A byte order mark is taken off the first line by its number, so it may stay inside the first shard.
        self._offsets.append(line.offset)
        self._lines.append(line.number)
        self._upstreams.append(upstream)
        if self.requests <= GROUPED_REQUESTS:
            self._ids.append(label[:LABEL_LENGTH])

    @property
    def upstreams(self) -> list[int]:
        """Places of those that the requests are for."""
        return sorted(set(self._upstreams))

    def labels(self, shards: list[Shard]) -> list[str]:
        """What the Temporal UI calls the shards; nothing where they are too many to be looked at."""
        if self.requests > GROUPED_REQUESTS:
            return []
        if self.requests <= SINGLE_REQUESTS:
            return list(self._ids)
        labels: list[str] = []
        for shard in shards:
            ends = (
                bisect.bisect_left(self._offsets, shard.offset),
                bisect.bisect_left(self._offsets, shard.offset + shard.length) - 1,
            )
            lines = "–".join(str(self._lines[end]) for end in ends)
            ids = " … ".join(self._ids[end][:GROUP_LABEL_LENGTH] for end in ends)
            labels.append(f"lines {lines}: {ids}")
        return labels

    def lines_digest(self) -> str:
        digest = LineDigest()
        for line in self._lines:
            digest.add(line)
        return digest.value

    def cut(self) -> list[Shard]:
        """The shards, in the order of their first lines. Those of each upstream take turns with the others' only
        where its requests do.
        """
        if len(self.upstreams) == 1:
            return list(self._cut(range(len(self._upstreams)), 0))
        shards: list[Shard] = []
        for number, route in enumerate(self.upstreams):
            mine = [index for index, upstream in enumerate(self._upstreams) if upstream == route]
            shards += self._cut(mine, number)
        return sorted(shards, key=lambda shard: shard.first_line)

    def _cut(self, requests: Sequence[int], upstream: int) -> Iterator[Shard]:
        size = 1
        if self.requests > GROUPED_REQUESTS:
            size = max(MIN_SHARD_REQUESTS, math.ceil(self.requests / MAX_SHARDS))
        elif self.requests > SINGLE_REQUESTS:
            size = GROUP_REQUESTS
        # An operator may allow inputs so large that shards of 16 MiB would be more than Temporal takes at once. The
        # shards of each upstream may span the whole input.
        max_bytes = max(MAX_SHARD_BYTES, math.ceil(self.end * len(self.upstreams) / MAX_SHARDS))
        first = 0
        for count, index in enumerate(requests, 1):
            start = self._offsets[requests[first]]
            is_last = count == len(requests)
            # The first one is small: it has a queue of its own, in which batches take turns.
            maximum = size if first else min(size, GROUP_REQUESTS)
            if is_last or count - first == maximum or self._end(requests[count]) - start > max_bytes:
                yield Shard(start, self._end(index) - start, self._lines[requests[first]], count - first, upstream)
                first = count

    def _end(self, request: int) -> int:
        """Of a request's line, with the blank ones behind it."""
        return self._offsets[request + 1] if request + 1 < len(self._offsets) else self.end
