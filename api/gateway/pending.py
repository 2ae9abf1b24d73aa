"""Reads the pending activities of a batch from Temporal's description of its workflow."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from pydantic import ValidationError
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.converter import DataConverter
from temporalio.exceptions import FailureError

from activities.upstreams.config import Upstream
from api.gateway.interface import SharedUpstream
from workflows.contract import DEFAULT_UPSTREAM, FIRST_SUFFIX, upstream_task_queue
from workflows.details import cut
from workflows.error_summary import ErrorCount
from workflows.events import PastWait
from workflows.types import ShardProgress
from workflows.waits import EndsBy, Wait, WaitKind, pause_wait, worker_wait

_WAITING: Final = (
    PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED,
    PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED,
)


@dataclass(frozen=True)
class Pending:
    """An activity that has not ended: a shard, the validation, or the writing of result files."""

    shard: int | None
    """Index of the shard; ``None`` for another activity or a shard of one request."""
    completed: int
    failed: int
    in_flight: int
    limit: int | None
    """Maximum number of requests in flight of the worker that runs it."""
    wait: Wait | None
    """The current wait: for an activity between two attempts, the reason why the last attempt ended."""
    next_attempt_at: float | None
    """Unix time in seconds."""
    heartbeat_at: float | None = None
    """Unix time in seconds of the last heartbeat, if the activity is running."""
    oldest_at: float | None = None
    """Unix time in seconds at which its oldest request in flight was sent or, if unknown, the attempt started."""
    done_at: float | None = None
    """Unix time in seconds of the last commit."""
    queue: str = ""
    errors: list[ErrorCount] = field(default_factory=list[ErrorCount])
    """Errors of the committed requests, which ``failed`` counts."""
    waits: list[PastWait] = field(default_factory=list[PastWait])
    """The waits that it has had so far."""


async def opened(activities: Sequence[PendingActivityInfo], converter: DataConverter) -> Sequence[PendingActivityInfo]:
    """Return the activities with decrypted payloads. They are decrypted in place.

    Raises:
        EncryptedPayloadError: this process does not have the key.
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
    progress = _heartbeat(activity) if kind in ("shard", "line") else ShardProgress()
    wait, next_attempt_at, in_flight = progress.wait, None, progress.in_flight
    is_waiting = activity.state in _WAITING
    if is_waiting:
        in_flight, wait = 0, _wait_after(activity)
        next_attempt_at = _seconds(activity, "next_attempt_schedule_time") if wait else None
    elif kind == "line" and not activity.heartbeat_details.payloads:
        in_flight = 1
    heartbeat_at = None if is_waiting else _seconds(activity, "last_heartbeat_time")
    started_at = None if is_waiting else _seconds(activity, "last_started_time")
    return Pending(
        shard=int(number) if kind == "shard" else None,
        completed=progress.completed if kind == "shard" else 0,
        failed=progress.failed if kind == "shard" else 0,
        in_flight=in_flight,
        limit=None if is_waiting else progress.limit,
        wait=wait,
        next_attempt_at=next_attempt_at,
        heartbeat_at=heartbeat_at,
        oldest_at=heartbeat_at - progress.oldest_seconds if heartbeat_at and in_flight else started_at,
        done_at=progress.done_at,
        queue=activity.activity_options.task_queue.name.removesuffix(FIRST_SUFFIX),
        errors=progress.errors if kind == "shard" else [],
        waits=progress.waits,
    )


def _wait_after(activity: PendingActivityInfo) -> Wait | None:
    """Return why an activity that is not running is waiting for another attempt, or ``None`` for its first."""
    failure = activity.last_failure
    if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED:
        return pause_wait("is paused in Temporal; resume its activities there", EndsBy.OPERATOR)
    if failure.HasField("timeout_failure_info"):
        return worker_wait("was lost; what it has not stored is done again")
    for payload in failure.application_failure_info.details.payloads:
        with contextlib.suppress(ValidationError):
            return Wait.model_validate_json(payload.data)
    # Most likely a bug: Everbatch's own failures carry a wait in their details.
    return worker_wait(f"failed and tries again: {cut(failure.message)}", EndsBy.OPERATOR) if failure.message else None


def _seconds(
    activity: PendingActivityInfo,
    field: Literal["last_heartbeat_time", "last_started_time", "next_attempt_schedule_time"],
) -> float | None:
    """Return a timestamp of an activity as Unix time in seconds, or ``None`` if it is not set."""
    return getattr(activity, field).ToNanoseconds() / 1e9 if activity.HasField(field) else None


def _heartbeat(activity: PendingActivityInfo) -> ShardProgress:
    """Return the last heartbeat of a shard, or an empty one if it cannot be read: another version may have sent it."""
    if activity.heartbeat_details.payloads:
        with contextlib.suppress(ValidationError):
            return ShardProgress.model_validate_json(activity.heartbeat_details.payloads[0].data)
    return ShardProgress()


def mark_missing_upstreams(pending: list[Pending], inference_queue: str, upstreams: Sequence[str]) -> list[Pending]:
    """Return ``pending`` with a wait on activities that are queued for an upstream that is no longer configured."""
    there = {upstream_task_queue(inference_queue, name) for name in upstreams}
    return [
        replace(item, wait=_missing(item.queue.removeprefix(inference_queue).removeprefix("-") or DEFAULT_UPSTREAM))
        if item.queue.startswith(inference_queue) and item.queue not in there and not item.in_flight
        else item
        for item in pending
    ]


def shared_upstreams(
    pending: list[Pending], inference_queue: str, upstreams: Sequence[Upstream]
) -> list[SharedUpstream]:
    """Return the upstreams with pending activities whose settings protect other clients."""
    queues = {item.queue for item in pending}
    return [
        SharedUpstream(name=one.name, interactive_headroom=one.interactive_headroom, body=dict(one.body))
        for one in upstreams
        if (one.interactive_headroom or one.body) and upstream_task_queue(inference_queue, one.name) in queues
    ]


def _missing(upstream: str) -> Wait:
    return Wait(
        kind=WaitKind.UPSTREAM,
        subject=f'upstream "{upstream}"',
        reason="is not configured any more",
        ends_by=EndsBy.OPERATOR,
    )
