"""The progress of a running batch, from the state of its workflow and the last heartbeats of its activities."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from api.gateway.interface import Progress
from api.gateway.pace import Pace
from api.gateway.pending import Pending
from workflows.error_summary import summed
from workflows.events import History
from workflows.ids import parse_ranges
from workflows.types import BatchRecord, BatchSpec, BatchStatus, Counts

REMEMBERED: Final = 10_000


def live_status(status: BatchStatus, running: list[Pending]) -> BatchStatus:
    """Return ``status`` with the counts, errors and waits of ``running`` added: see :func:`unfinished`."""
    counts = Counts(
        total=status.counts.total,
        completed=status.counts.completed + sum(item.completed for item in running),
        failed=status.counts.failed + sum(item.failed for item in running),
    )
    errors = summed([*status.error_summary, *(error for item in running for error in item.errors)])
    history = status.history.with_waits(wait for item in running for wait in item.waits)
    return status.model_copy(update={"counts": counts, "error_summary": errors, "history": history})


def unfinished(status: BatchStatus, pending: list[Pending]) -> list[Pending]:
    """Return the pending activities without the shards that ``status`` already counts as finished."""
    finished = parse_ranges(status.finished_shards)
    return [item for item in pending if item.shard not in finished]


def progress_of(status: BatchStatus, pending: list[Pending], pace: Pace | None) -> Progress:
    in_flight = sum(item.in_flight for item in pending)
    queues: dict[str, list[int]] = {}
    for item in pending:
        if item.limit is not None:
            queues.setdefault(item.queue, []).append(item.limit)
    if status.paused_at is not None:
        return Progress(in_flight=in_flight)
    return Progress(
        requests_per_second=float(f"{pace.per_second:.3g}") if pace else None,
        eta_seconds=round(pace.seconds_left) if pace else None,
        in_flight=in_flight,
        in_flight_limit=sum(map(min, queues.values())) or None,
    )


@dataclass(frozen=True)
class _Shown:
    counts: Counts = field(default_factory=Counts)
    cancelling_at: int | None = None
    cancel_seen: float = 0.0
    """Unix time at which the lookup began that showed the cancel."""
    history: History | None = None
    """The history that the workflow last reported, without the waits of running shards."""


class HighWater:
    """What was shown of each batch, so that neither counts nor a cancel are taken back when a less informed source
    answers later.

    It is kept in the memory of one process and may be lost at any moment: nothing but consistent output depends on it.
    """

    def __init__(self) -> None:
        self._shown: OrderedDict[str, _Shown] = OrderedDict()

    def history(self, batch_id: str) -> History | None:
        return self._shown.get(batch_id, _Shown()).history

    def record(
        self,
        spec: BatchSpec,
        status: BatchStatus,
        seen_at: float = 0.0,
        is_from_workflow: bool = False,
        history: History | None = None,
    ) -> BatchRecord:
        """Return the batch to show: its counts are no lower than before, and a cancel that was shown is kept.

        If the workflow itself has answered, it overrules a cancel shown by an earlier lookup: a workflow that was reset
        to before its cancel is not cancelled.

        Args: ``seen_at`` is the Unix time at which this lookup began; ``history`` is what the workflow reported.
        """
        before = self._shown.pop(spec.batch_id, _Shown())
        keeps_cancel = not (is_from_workflow and seen_at > before.cancel_seen)
        cancelling_at = status.cancelling_at or (before.cancelling_at if keeps_cancel else None)
        shown = Counts(
            total=max(status.counts.total, before.counts.total),
            completed=max(status.counts.completed, before.counts.completed),
            failed=max(status.counts.failed, before.counts.failed),
        )
        cancel_seen = max(seen_at, before.cancel_seen) if status.cancelling_at else before.cancel_seen
        self._shown[spec.batch_id] = _Shown(shown, cancelling_at, cancel_seen, history or before.history)
        if len(self._shown) > REMEMBERED:
            self._shown.popitem(last=False)
        return BatchRecord(
            spec=spec, status=status.model_copy(update={"counts": shown, "cancelling_at": cancelling_at})
        )

    def forget(self, batch_id: str) -> None:
        self._shown.pop(batch_id, None)
