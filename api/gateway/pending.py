"""The activities of a batch that have not ended, as Temporal describes them."""

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
    """An activity that has not ended: a shard, the validation, or the writing of files."""

    shard: int | None
    """``None`` for what is no group of requests."""
    completed: int
    failed: int
    in_flight: int
    limit: int | None
    """Of the worker that runs it."""
    wait: Wait | None
    """Why its last attempt ended, when it waits for the next; else what it waits for while it runs."""
    next_attempt_at: float | None
    """Unix seconds."""
    heard_at: float | None = None
    """When one that runs last sent a heartbeat, in Unix seconds."""
    oldest_at: float | None = None
    """When the oldest of its requests in flight was sent, in Unix seconds, by its last heartbeat."""
    done_at: float | None = None
    """When the last of its requests that are done was, in Unix seconds."""
    queue: str = ""
    """Its task queue: each upstream has its own."""
    errors: list[ErrorCount] = field(default_factory=list[ErrorCount])
    """As ``failed``."""
    waits: list[PastWait] = field(default_factory=list[PastWait])
    """For which it has waited so far."""


async def opened(activities: Sequence[PendingActivityInfo], converter: DataConverter) -> Sequence[PendingActivityInfo]:
    """The activities with their payloads decrypted, if payloads are encrypted.

    Raises:
        EncryptedPayloadError: the key is not here.
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
    wait, next_attempt_at, in_flight = said.wait, None, said.in_flight
    is_waiting = activity.state in _WAITING
    if is_waiting:
        in_flight, wait = 0, _wait_after(activity)
        next_attempt_at = _seconds(activity, "next_attempt_schedule_time") if wait else None
    elif kind == "line" and not activity.heartbeat_details.payloads:
        in_flight = 1
    heard_at = None if is_waiting else _seconds(activity, "last_heartbeat_time")
    started_at = None if is_waiting else _seconds(activity, "last_started_time")
    return Pending(
        shard=int(number) if kind == "shard" else None,
        completed=said.completed if kind == "shard" else 0,
        failed=said.failed if kind == "shard" else 0,
        in_flight=in_flight,
        limit=None if is_waiting else said.limit,
        wait=wait,
        next_attempt_at=next_attempt_at,
        heard_at=heard_at,
        oldest_at=heard_at - said.oldest_seconds if heard_at and in_flight else started_at,
        done_at=said.done_at,
        queue=activity.activity_options.task_queue.name.removesuffix(FIRST_SUFFIX),
        errors=said.errors if kind == "shard" else [],
        waits=said.waits,
    )


def _wait_after(activity: PendingActivityInfo) -> Wait | None:
    """Why an activity that does not run is to be run again."""
    failure = activity.last_failure
    if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED:
        return pause_wait("is paused in Temporal; resume its activities there", EndsBy.OPERATOR)
    if failure.HasField("timeout_failure_info"):
        return worker_wait("was lost; what it has not stored is done again")
    for payload in failure.application_failure_info.details.payloads:
        with contextlib.suppress(ValidationError):
            return Wait.model_validate_json(payload.data)
    # A bug, most likely: nothing of ours fails without saying why.
    return worker_wait(f"failed and tries again: {cut(failure.message)}", EndsBy.OPERATOR) if failure.message else None


def _seconds(
    activity: PendingActivityInfo,
    field: Literal["last_heartbeat_time", "last_started_time", "next_attempt_schedule_time"],
) -> float | None:
    """A time of an activity, where it has it."""
    return getattr(activity, field).ToNanoseconds() / 1e9 if activity.HasField(field) else None


def _heartbeat(activity: PendingActivityInfo) -> ShardProgress:
    """The last heartbeat of a shard. What cannot be read is ignored: another version may have sent it."""
    if activity.heartbeat_details.payloads:
        with contextlib.suppress(ValidationError):
            return ShardProgress.model_validate_json(activity.heartbeat_details.payloads[0].data)
    return ShardProgress()


def tell_missing(pending: list[Pending], inference_queue: str, upstreams: Sequence[str]) -> list[Pending]:
    """The same, with a reason for what waits in the task queue of an upstream that is not among these any more."""
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
    """Of these, those that something is pending for and whose settings have regard for other clients."""
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
