"""Adds up the results of the shards of a batch."""

from __future__ import annotations

from workflows.error_summary import summed
from workflows.events import ended
from workflows.ids import format_ranges
from workflows.types import BatchStatus, Counts, ShardResult


class Tally:
    def __init__(self) -> None:
        self._finished: set[int] = set()

    @property
    def finished(self) -> int:
        """Number of shards that have finished."""
        return len(self._finished)

    def add(self, status: BatchStatus, index: int, result: ShardResult, now: float) -> BatchStatus:
        """Return ``status`` with the result of shard ``index`` added; ``now`` is Unix time in seconds."""
        self._finished.add(index)
        counts = status.counts
        changes = {
            "counts": Counts(
                total=counts.total,
                completed=counts.completed + result.completed,
                failed=counts.failed + result.failed,
            ),
            "usage": status.usage + result.usage,
            "error_summary": summed([*status.error_summary, *result.errors]),
            "history": status.history.with_waits(ended(wait, int(now)) for wait in result.waits),
            "finished_shards": format_ranges(self._finished),
            "rate_at": now,
        }
        return status.model_copy(update=changes)
