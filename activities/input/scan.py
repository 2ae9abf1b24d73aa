"""Reading an input once: every line is checked, and the whole is cut into shards."""

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
    order: bytes = b""
    """In which it is sent, if not in its own."""


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
            break  # the batch fails for them all
        checked = checker.check(line)
        if checked.error:
            errors_total += 1
            if len(errors) < MAX_ERRORS:
                errors.append(checked.error)
        scan.add(line, checked)
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
    """Requests that are to be a shard."""

    requests: array[int]
    upstream: int
    turn: int
    """Groups of several upstreams take turns by this."""


class _Scan:
    """Where the requests are. How many share a shard depends on how many there are, known only at the end."""

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
        # A byte order mark is taken off the first line by its number, so it may stay inside the first shard.
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
        """Places of those that the requests are for."""
        return sorted(self._of_upstream)

    def lines_digest(self) -> str:
        digest = LineDigest()
        for line in self._lines:
            digest.add(line)
        return digest.value

    def cut(self) -> tuple[list[Shard], list[str], bytes]:
        """The shards in the order in which they are sent, what the Temporal UI calls them (nothing where they are too
        many to be looked at), and the sending order, if it is not that of the input.

        Shards of each upstream take turns with the others' only where its requests do.
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
        # An operator may allow inputs so large that shards of 16 MiB would be more than Temporal takes at once.
        max_bytes = max(MAX_SHARD_BYTES, math.ceil(self.end / MAX_SHARDS))
        mine = self._of_upstream[route]
        sent = self._sent(route)
        first, length = 0, 0
        for count, request in enumerate(sent, 1):
            length += self._length(request)
            # The first one is small: it has a queue of its own, in which batches take turns.
            maximum = size if first else min(size, GROUP_REQUESTS)
            if count in (len(sent), first + maximum) or length + self._length(sent[count]) > max_bytes:
                yield _Group(sent[first:count], upstream, mine[first])
                first, length = count, 0

    def _sent(self, route: int) -> array[int]:
        """The requests for an upstream, in the order in which it gets them."""
        mine, tree, order = self._of_upstream[route], self._trees.get(route), self._routes.order(route)
        if not tree or (order == "auto" and not (self.requests > SINGLE_REQUESTS and tree.pays)):
            return mine
        return array("I", [mine[one] for one in tree.order()])

    def _length(self, request: int) -> int:
        """Bytes of a request's line, with the blank ones behind it."""
        end = self._offsets[request + 1] if request + 1 < len(self._offsets) else self.end
        return end - self._offsets[request]
