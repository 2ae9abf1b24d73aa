"""The progress of a running batch, from the state of its workflow and the last heartbeats of its activities."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from api.gateway.interface import Progress
from api.gateway.pending import Pending
from workflows.error_summary import ErrorCount, summed
from workflows.events import History
from workflows.ids import parse_ranges
from workflows.types import BatchStatus, Counts

REMEMBERED: Final = 10_000
"""Batches whose last counts one API process keeps in mind."""


def live_counts(status: BatchStatus, pending: list[Pending]) -> Counts:
    """Counts with those of running shards. Each shard counts once: finished ones are in the status already."""
    running = _running(status, pending)
    return Counts(
        total=status.counts.total,
        completed=status.counts.completed + sum(item.completed for item in running),
        failed=status.counts.failed + sum(item.failed for item in running),
    )


def live_history(status: BatchStatus, pending: list[Pending]) -> History:
    """With what running shards have waited for, or do."""
    finished = parse_ranges(status.finished_shards)
    return status.history.with_waits(wait for item in pending if item.shard not in finished for wait in item.waits)


def _running(status: BatchStatus, pending: list[Pending]) -> list[Pending]:
    finished = parse_ranges(status.finished_shards)
    return [item for item in pending if item.shard is not None and item.shard not in finished]


def progress_of(status: BatchStatus, counts: Counts, pending: list[Pending], now: float) -> Progress:
    """Args: ``counts`` are the live ones; ``now`` is Unix time."""
    done = counts.completed + counts.failed
    since, before = status.rate_since, status.rate_done
    if since is None and status.in_progress_at is not None:
        since, before = float(status.in_progress_at), 0
    rate = (done - before) / (now - since) if since is not None and now - since >= 1 else None
    in_flight = sum(item.in_flight for item in pending)
    queues: dict[str, list[int]] = {}
    for item in pending:
        if item.limit is not None:
            queues.setdefault(item.queue, []).append(item.limit)
    if status.paused_at is not None:
        return Progress(in_flight=in_flight)
    return Progress(
        requests_per_second=round(rate, 2) if rate is not None else None,
        eta_seconds=round((counts.total - done) / rate) if rate else None,
        in_flight=in_flight,
        in_flight_limit=sum(map(min, queues.values())) or None,
    )


def live_errors(status: BatchStatus, pending: list[Pending]) -> list[ErrorCount]:
    """The errors of the requests that :func:`live_counts` counts as failed."""
    return summed([*status.error_summary, *(error for item in _running(status, pending) for error in item.errors)])


class HighWater:
    """The highest counts shown of each batch, so that counts never decrease when a less precise source answers.

    A memory of one process, and only a nicety: it may be lost at any moment.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[str, Counts] = OrderedDict()

    def raise_to(self, batch_id: str, counts: Counts) -> Counts:
        """The counts to show: no lower than before."""
        before = self._counts.pop(batch_id, Counts())
        shown = Counts(
            total=max(counts.total, before.total),
            completed=max(counts.completed, before.completed),
            failed=max(counts.failed, before.failed),
        )
        self._counts[batch_id] = shown
        if len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)
        return shown

    def forget(self, batch_id: str) -> None:
        self._counts.pop(batch_id, None)
