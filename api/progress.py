"""How a running batch gets on, put together from what the workflow knows and what its activities last said."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import ValidationError
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.converter import DataConverter
from temporalio.exceptions import FailureError

from api.views import Progress
from workflows.contract import DEFAULT_UPSTREAM, upstream_task_queue
from workflows.ids import parse_ranges
from workflows.types import BatchStatus, Counts, ShardProgress

REMEMBERED: Final = 10_000
"""Batches whose last counts one API process keeps in mind."""


REASONS: Final = 3
"""Upstreams whose reasons to wait are told at once."""

_WAITING: Final = (
    PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED,
    PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED,
)


@dataclass(frozen=True)
class Pending:
    """An activity that has not ended: a shard, the validation, or the writing of files."""

    shard: int | None
    """``None`` for what is no group of requests."""
    completed: int
    failed: int
    in_flight: int
    limit: int | None
    """Of the worker that runs it."""
    waits_for: str
    """Why its last attempt ended, when it waits for the next; or what its answers wait for, to be stored."""
    next_attempt_at: float | None
    """Unix seconds."""
    queue: str = ""
    """Its task queue: each upstream has its own."""


async def opened(activities: Sequence[PendingActivityInfo], converter: DataConverter) -> Sequence[PendingActivityInfo]:
    """The activities with what is sealed in them in the clear; as they are where nothing is sealed.

    Raises:
        SealedPayload: the key is not here.
    """
    codec = converter.payload_codec
    if codec is None:
        return activities
    for activity in activities:
        if activity.heartbeat_details.payloads:
            await codec.decode_wrapper(activity.heartbeat_details)
        failure = activity.last_failure
        if failure.HasField("encoded_attributes"):
            await codec.decode_failure(failure)
            failure.message = _text(converter.failure_converter.from_failure(failure, converter.payload_converter))
    return activities


def _text(failure: BaseException) -> str:
    return failure.message if isinstance(failure, FailureError) else str(failure)


def read_pending(activities: Sequence[PendingActivityInfo]) -> list[Pending]:
    return [_read(activity) for activity in activities]


def _read(activity: PendingActivityInfo) -> Pending:
    kind, _, number = activity.activity_id.partition("-")
    said = _heartbeat(activity) if kind in ("shard", "line") else ShardProgress()
    waits_for, next_attempt_at, in_flight = said.waits_for, None, said.in_flight
    is_waiting = activity.state in _WAITING
    if is_waiting:
        in_flight, waits_for = 0, activity.last_failure.message
        if activity.last_failure.HasField("timeout_failure_info"):
            waits_for = "a worker was lost; what it had not committed is sent again"
        if waits_for and activity.HasField("next_attempt_schedule_time"):
            next_attempt_at = activity.next_attempt_schedule_time.ToNanoseconds() / 1e9
    elif kind == "line":
        in_flight = 1
    return Pending(
        shard=int(number) if kind == "shard" else None,
        completed=said.completed if kind == "shard" else 0,
        failed=said.failed if kind == "shard" else 0,
        in_flight=in_flight,
        limit=None if is_waiting else said.limit,
        waits_for=waits_for,
        next_attempt_at=next_attempt_at,
        queue=activity.activity_options.task_queue.name,
    )


def _heartbeat(activity: PendingActivityInfo) -> ShardProgress:
    """What a shard last said. Another version of the worker may have said it: what cannot be read was not said."""
    if activity.heartbeat_details.payloads:
        with contextlib.suppress(ValidationError):
            return ShardProgress.model_validate_json(activity.heartbeat_details.payloads[0].data)
    return ShardProgress()


def tell_missing(pending: list[Pending], inference_queue: str, upstreams: Sequence[str]) -> list[Pending]:
    """The same, with a reason for what waits in the task queue of an upstream that is not among these any more."""
    there = {upstream_task_queue(inference_queue, name) for name in upstreams}
    return [
        replace(item, waits_for=f"there is no upstream {_upstream_of(item, inference_queue)}")
        if item.queue.startswith(inference_queue) and item.queue not in there and not item.in_flight
        else item
        for item in pending
    ]


def _upstream_of(item: Pending, inference_queue: str) -> str:
    return item.queue.removeprefix(inference_queue).removeprefix("-") or DEFAULT_UPSTREAM


def live_counts(status: BatchStatus, pending: list[Pending]) -> Counts:
    """Counts with those of running shards. Each shard counts once: finished ones are in the status already."""
    finished = parse_ranges(status.finished_shards)
    running = [item for item in pending if item.shard is not None and item.shard not in finished]
    return Counts(
        total=status.counts.total,
        completed=status.counts.completed + sum(item.completed for item in running),
        failed=status.counts.failed + sum(item.failed for item in running),
    )


def progress_of(status: BatchStatus, counts: Counts, pending: list[Pending], now: float) -> Progress:
    """Args: ``counts`` are the live ones; ``now`` is Unix time."""
    done = counts.completed + counts.failed
    since, before = status.rate_since, status.rate_done
    if since is None and status.in_progress_at is not None:
        since, before = float(status.in_progress_at), 0
    rate = (done - before) / (now - since) if since is not None and now - since >= 1 else None
    in_flight = sum(item.in_flight for item in pending)
    if status.paused_at is not None:
        return Progress(in_flight=in_flight, waiting_reason="the batch is paused")
    queues: dict[str, list[Pending]] = {}
    for item in pending:
        queues.setdefault(item.queue, []).append(item)
    waiting = sorted(filter(None, (_first_waiting(items, now) for items in queues.values())), key=_next_attempt)
    limits = [[item.limit for item in items if item.limit is not None] for items in queues.values()]
    return Progress(
        requests_per_second=round(rate, 2) if rate is not None else None,
        eta_seconds=round((counts.total - done) / rate) if rate else None,
        in_flight=in_flight,
        in_flight_limit=sum(map(min, filter(None, limits))) or None,
        waiting_reason="; ".join(item.waits_for for item in waiting[:REASONS]) or None,
        next_attempt_at=int(waiting[0].next_attempt_at) if waiting and waiting[0].next_attempt_at else None,
    )


def _first_waiting(items: list[Pending], now: float) -> Pending | None:
    """Of the activities in one queue the one that waits, and for the shortest."""
    waiting = [item for item in items if item.waits_for]
    if any(item.in_flight for item in items) and not any((item.next_attempt_at or 0) > now for item in waiting):
        # On its way again: what is left of an outage is a place in the queue. Answers may still wait for the store.
        waiting = [item for item in waiting if item.limit is not None]
    return min(waiting, key=_next_attempt, default=None)


def _next_attempt(item: Pending) -> float:
    return item.next_attempt_at or float("inf")


class HighWater:
    """The highest counts shown of each batch, so that they never go back when a poorer source has to answer.

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
