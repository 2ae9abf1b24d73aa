"""What a running batch waits for, from all that is known about it, and the sentence that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from api.gateway.interface import Progress, Waiting
from api.gateway.pending import Pending
from workflows.types import BatchPhase, BatchSpec, BatchStatus
from workflows.waits import EndsBy, Wait, finalizing_wait, pause_wait, validating_wait

MAX_NAMED: Final = 3
"""Maximum number of waits that the sentence names, for example of several upstreams."""

PATIENCE_SECONDS: Final = 2.0
"""Validating the input or writing the files is reported as a wait only after this time: most take less."""


@dataclass(frozen=True)
class ReportedWait:
    """A wait, and the time of the next attempt."""

    wait: Wait
    next_attempt_at: float | None = None


def waits_of(spec: BatchSpec, status: BatchStatus, pending: Sequence[Pending], now: float) -> list[ReportedWait]:
    """Return what a batch waits for according to its workflow and its activities, the earliest next attempt first.

    Args: ``now`` is Unix time in seconds.
    """
    if status.paused_at is not None and not _is_ending(status):
        return [ReportedWait(pause_wait(f"is paused; POST /v1/batches/{spec.batch_id}/resume lets it go on"))]
    queues: dict[str, list[Pending]] = {}
    for item in pending:
        queues.setdefault(item.queue, []).append(item)
    found = [reported for items in queues.values() if (reported := _first_waiting(items, now))]
    if found:
        return sorted(found, key=_next_attempt)
    if status.finalizing_at is not None and now - status.finalizing_at >= PATIENCE_SECONDS:
        return [ReportedWait(finalizing_wait())]
    if status.phase is BatchPhase.VALIDATING and now - spec.created_at >= PATIENCE_SECONDS:
        return [ReportedWait(validating_wait())]
    return []


def _is_ending(status: BatchStatus) -> bool:
    return status.cancelling_at is not None or status.finalizing_at is not None


def _first_waiting(items: Sequence[Pending], now: float) -> ReportedWait | None:
    """Return, of one task queue's activities, the wait with the earliest next attempt; ``None`` if none of them waits.

    Its number of requests is that of all waiting activities.
    """
    waiting = [item for item in items if item.wait]
    if any(item.in_flight for item in items) and not any((item.next_attempt_at or 0) > now for item in waiting):
        # The outage is over, and activities that do not run yet only wait for their turn. Running activities, which
        # have a limit, may still wait for the upstream.
        waiting = [item for item in waiting if item.limit is not None]
    first = min(waiting, key=lambda item: item.next_attempt_at or math.inf, default=None)
    if first is None or first.wait is None:
        return None
    requests = sum(item.wait.requests for item in waiting if item.wait)
    return ReportedWait(first.wait.model_copy(update={"requests": requests}), first.next_attempt_at)


def _next_attempt(reported: ReportedWait) -> float:
    return reported.next_attempt_at or math.inf


def with_waits(
    progress: Progress, waits: Sequence[ReportedWait], spec: BatchSpec, status: BatchStatus, now: float
) -> Progress:
    """Return ``progress`` with the current waits added, the first of which also fills the structured fields.

    Args: ``status`` has counts that include running shards; ``now`` is Unix time in seconds.
    """
    if not waits:
        return progress
    first, counts = waits[0], status.counts
    left = counts.total - counts.completed - counts.failed
    requests = first.wait.requests
    if requests and len(waits) == 1 and not progress.in_flight:
        requests = left  # including those whose turn has not come yet
    next_attempt_at = int(first.next_attempt_at) if first.next_attempt_at else None
    parts = [first.wait.text]
    if requests:
        parts.append(f"{min(requests, left):,} of {counts.total:,} requests wait")
    if first.wait.ends_by is EndsBy.OPERATOR:
        parts.append("this does not end by itself, an operator has to act")
    if first.next_attempt_at:
        parts.append(f"next try {_in(first.next_attempt_at - now)}")
    if not _is_ending(status):
        parts.append(f"the window {_ends(spec.expires_at - now)}")
    also = "; ".join(other.wait.text for other in waits[1:MAX_NAMED])
    return progress.model_copy(
        update={
            "waiting": Waiting(
                kind=first.wait.kind,
                subject=first.wait.subject,
                reason=first.wait.reason,
                ends_by=first.wait.ends_by,
                requests=min(requests, left) or None,
                next_attempt_at=next_attempt_at,
            ),
            "waiting_reason": f"Waiting: {'; '.join(parts)}." + (f" Also waiting: {also}." if also else ""),
            "next_attempt_at": next_attempt_at,
        }
    )


def _in(seconds: float) -> str:
    return f"in {duration(seconds)}" if seconds >= 1 else "at any moment"


def _ends(seconds: float) -> str:
    return f"ends in {duration(seconds)}" if seconds >= 1 else "has ended"


def duration(seconds: float) -> str:
    """Return a duration as text for people, rounded down: ``12 s``, ``4 min``, ``23 h``."""
    for size, unit, enough in ((86_400, "d", 3), (3_600, "h", 2), (60, "min", 2)):
        if seconds >= enough * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
