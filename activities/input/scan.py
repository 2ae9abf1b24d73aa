"""Reads an input once: checks every line and divides the input into shards."""

from __future__ import annotations

import hashlib
import math
import time
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from activities.input.encodings import file_error
from activities.input.jsonl import Line, read_lines
from activities.input.prefixes import PrefixTree
from activities.input.request_rules import NOT_JSON, CheckedLine, LineChecker
from activities.records.cuts import Cut, LineDigest
from activities.records.sending_order import ENTRY_BYTES, LinePlace, pack_places
from activities.upstreams.routes import ModelRoutes
from workflows.types import BatchError, BatchSpec, Shard, ValidateResult

MAX_ERRORS: Final = 100
"""Maximum number of errors that are reported, together with their total."""
MAX_REFUSED: Final = 10_000
"""Number of invalid lines after which the rest of an input is not checked, however many requests a batch may have: a
file of short invalid lines would otherwise occupy a processor for minutes."""

SINGLE_REQUESTS: Final = 50
"""Maximum requests of a batch in which each is an activity of its own, for people to inspect."""
GROUPED_REQUESTS: Final = 5_000
"""Maximum requests of a batch with shards of ``GROUP_REQUESTS``, which a person can still inspect."""
GROUP_REQUESTS: Final = 32
MAX_SHARDS: Final = 500
MIN_SHARD_REQUESTS: Final = 250
"""Minimum requests of a shard in larger batches, so that the cost of a shard is small for each request."""
MAX_SHARD_BYTES: Final = 16 << 20

LABEL_LENGTH: Final = 100
GROUP_LABEL_LENGTH: Final = 40


def failed(errors: list[BatchError], total: int = 0) -> ValidateResult:
    return ValidateResult(errors=errors, errors_total=total or len(errors), finished_at=int(time.time()))


class Scanned(NamedTuple):
    result: ValidateResult
    cut: Cut | None = None
    """The cut of a valid input, without the digest of the input's bytes."""
    order: bytes = b""
    """The encoded sending order, or empty if it is the input order."""


def scan_input(chunks: Iterable[bytes], spec: BatchSpec, routes: ModelRoutes) -> Scanned:
    """Check every line of an input.

    Memory grows by some tens of bytes per request, and does not depend on the length of the requests.

    Raises:
        UpstreamUnavailableError: the route of a model depends on upstreams that do not answer.
    """
    checker = LineChecker(spec, routes)
    scan = _Scan(routes)
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
            break  # the batch fails for having too many requests
        checked = checker.check(line)
        if checked.error:
            errors_total += 1
            if len(errors) < MAX_ERRORS:
                errors.append(checked.error)
        scan.add(line, checked)
        if checker.refused >= MAX_REFUSED:
            break
    if not scan.requests:
        message = "The input file is empty. Please ensure that the batch contains at least one request."
        return Scanned(failed([BatchError(code="empty_file", message=message)]))
    limit_errors = _limit_errors(scan.requests, checker.embedding_inputs, spec)
    errors_total += len(limit_errors)
    errors = [*limit_errors, *errors][:MAX_ERRORS]
    if errors:
        if errors_total > len(errors):
            last = errors[-1]
            rest = "; later lines were not checked" if checker.refused >= MAX_REFUSED else ""
            more = f"{last.message} (The first {len(errors)} of {errors_total} errors are listed{rest}.)"
            errors[-1] = last.model_copy(update={"message": more})
        return Scanned(failed(errors, errors_total))
    shards, labels, order = scan.cut()
    upstreams = [routes.name(index) for index in scan.upstreams]
    result = ValidateResult(
        model=checker.only_model,
        total=scan.requests,
        finished_at=int(time.time()),
        shards=shards,
        upstreams=upstreams,
        labels=labels,
        has_order=bool(order),
    )
    digest = hashlib.sha256(order).hexdigest()[:32] if order else ""
    return Scanned(result, Cut("", scan.lines_digest(), shards, upstreams, digest), order)


def _limit_errors(requests: int, embedding_inputs: int, spec: BatchSpec) -> list[BatchError]:
    errors: list[BatchError] = []
    if requests > spec.max_requests:
        message = f"The input file has more than {spec.max_requests} requests, the most that a batch may have."
        errors.append(BatchError(code="too_many_tasks", message=message))
    if embedding_inputs > spec.max_requests:
        message = f"The input file has {embedding_inputs} embedding inputs; at most {spec.max_requests} may be."
        errors.append(BatchError(code="too_many_tasks", message=message))
    return errors


class _Group(NamedTuple):
    """The requests of a future shard."""

    requests: array[int]
    upstream: int
    turn: int
    """Sort key by which the groups of several upstreams alternate."""


class _Scan:
    """Records the places of requests. The size of shards depends on their number, which is only known at the end."""

    def __init__(self, routes: ModelRoutes) -> None:
        self.requests = 0
        self.end = 0
        self._routes = routes
        self._ids: list[str] = []
        self._offsets = array("Q")
        self._lines = array("Q")
        self._of_upstream: dict[int, array[int]] = {}
        self._trees: dict[int, PrefixTree] = {}

    def add(self, line: Line, checked: CheckedLine) -> None:
        # A byte order mark is removed from the line with number 1, so it may remain in the first shard.
        self._offsets.append(line.offset)
        self._lines.append(line.number)
        upstream = checked.upstream
        if upstream not in self._of_upstream:
            self._of_upstream[upstream] = array("I")
            if upstream in self._routes.by_prefix:
                self._trees[upstream] = PrefixTree()
        self._of_upstream[upstream].append(self.requests)
        if tree := self._trees.get(upstream):
            tree.add(checked.beginning)
        self.requests += 1
        if self.requests <= GROUPED_REQUESTS:
            self._ids.append(checked.custom_id[:LABEL_LENGTH])

    @property
    def upstreams(self) -> list[int]:
        """Indexes, in the routes, of the upstreams that the requests are for."""
        return sorted(self._of_upstream)

    def lines_digest(self) -> str:
        digest = LineDigest()
        for line in self._lines:
            digest.add(line)
        return digest.value

    def cut(self) -> tuple[list[Shard], list[str], bytes]:
        """Return the shards in sending order, their labels in the Temporal UI (none if there are too many requests),
        and the encoded sending order (empty if it is that of the input).

        Shards of different upstreams alternate only as their requests do in the input.
        """
        groups = [group for number, route in enumerate(self.upstreams) for group in self._groups(number, route)]
        groups.sort(key=lambda group: group.turn)
        sent = array("I")
        for group in groups:
            sent.extend(group.requests)
        has_order = sent != array("I", range(self.requests))
        shards: list[Shard] = []
        labels: list[str] = []
        before = 0
        for requests, upstream, _ in groups:
            first, last = requests[0], requests[-1]
            offset = before * ENTRY_BYTES if has_order else self._offsets[first]
            length = sum(map(self._length, requests))
            shards.append(Shard(offset, length, self._lines[first], len(requests), upstream))
            before += len(requests)
            if self.requests <= GROUPED_REQUESTS:
                labels.append(self._label(first, last, "…" if has_order else "–"))
        places = (LinePlace(self._offsets[one], self._length(one), self._lines[one]) for one in sent)
        return shards, labels, pack_places(places, len(sent)) if has_order else b""

    def _label(self, first: int, last: int, to: str) -> str:
        if self.requests <= SINGLE_REQUESTS:
            return self._ids[first]
        ids = " … ".join(self._ids[end][:GROUP_LABEL_LENGTH] for end in (first, last))
        return f"lines {self._lines[first]}{to}{self._lines[last]}: {ids}"

    def _groups(self, upstream: int, route: int) -> Iterator[_Group]:
        size = 1
        if self.requests > GROUPED_REQUESTS:
            size = max(MIN_SHARD_REQUESTS, math.ceil(self.requests / MAX_SHARDS))
        elif self.requests > SINGLE_REQUESTS:
            size = GROUP_REQUESTS
        # An operator may allow inputs so large that shards of 16 MiB would be too many for Temporal.
        max_bytes = max(MAX_SHARD_BYTES, math.ceil(self.end / MAX_SHARDS))
        mine = self._of_upstream[route]
        sent = self._sent(route)
        first, length = 0, 0
        for count, request in enumerate(sent, 1):
            length += self._length(request)
            # The first shard is small, because it has a queue of its own in which batches take turns.
            maximum = size if first else min(size, GROUP_REQUESTS)
            if count in (len(sent), first + maximum) or length + self._length(sent[count]) > max_bytes:
                yield _Group(sent[first:count], upstream, mine[first])
                first, length = count, 0

    def _sent(self, route: int) -> array[int]:
        """Return the requests for an upstream in sending order."""
        mine, tree, order = self._of_upstream[route], self._trees.get(route), self._routes.order(route)
        if not tree or (order == "auto" and not (self.requests > SINGLE_REQUESTS and tree.pays)):
            return mine
        return array("I", [mine[one] for one in tree.order()])

    def _length(self, request: int) -> int:
        """Return the bytes of a request's line, including the blank lines that follow."""
        end = self._offsets[request + 1] if request + 1 < len(self._offsets) else self.end
        return end - self._offsets[request]
