"""The objects of Anthropic's Message Batches API. A message batch is a batch of the endpoint ``/v1/messages``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import BaseModel

from api.gateway.interface import BatchView
from api.http.anthropic_errors import PREFIX
from api.http.schemas import Listed, Page
from workflows.types import BatchPhase, BatchSpec, BatchStatus

BATCHES_PATH: Final = f"{PREFIX}/batches"
_OURS: Final = "batch_"
_THEIRS: Final = "msgbatch_"


class MessageRequestCounts(BaseModel):
    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatch(Listed):
    type: Literal["message_batch"] = "message_batch"
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: MessageRequestCounts
    """All requests count as ``processing`` until the batch has ended."""
    ended_at: str | None
    created_at: str
    expires_at: str
    archived_at: str | None
    cancel_initiated_at: str | None
    results_url: str | None
    """A URL relative to the server, since only its clients know its address."""


class MessageBatchList(Page[MessageBatch]):
    pass


class MessageBatchDeleted(BaseModel):
    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


class MessageErrorDetail(BaseModel):
    type: str
    message: str


class MessageError(BaseModel):
    type: Literal["error"] = "error"
    error: MessageErrorDetail
    request_id: str | None


def batch_id_of(message_batch_id: str) -> str:
    """Return the batch id of a message batch. A malformed id yields ``none``, which is the id of no batch."""
    id_ = message_batch_id
    return _OURS + id_.removeprefix(_THEIRS) if id_.startswith(_THEIRS) else "none"


def message_batch_id(spec: BatchSpec) -> str:
    return _THEIRS + spec.batch_id.removeprefix(_OURS)


def message_batch(view: BatchView, now: float) -> MessageBatch:
    """Return a batch as Anthropic's API shows it. Args: ``now`` is Unix time in seconds."""
    spec, status = view.record.spec, view.record.status
    id_ = message_batch_id(spec)
    archived_at = archive_time(spec, status)
    is_archived = archived_at is not None and archived_at <= now
    ended = status.phase.is_terminal
    return MessageBatch(
        id=id_,
        processing_status="ended" if ended else "canceling" if status.cancelling_at is not None else "in_progress",
        request_counts=_counts(spec, status),
        ended_at=_time_if(status.ended_at),
        created_at=_time(spec.created_ms / 1000),
        expires_at=_time(spec.expires_at),
        archived_at=_time_if(archived_at if is_archived else None),
        cancel_initiated_at=_time_if(status.cancelling_at),
        results_url=f"{BATCHES_PATH}/{id_}/results" if ended and not is_archived else None,
    )


def archive_time(spec: BatchSpec, status: BatchStatus) -> int | None:
    """Return the Unix time at which the results expire, or ``None`` if the batch has not ended."""
    return status.ended_at + spec.output_expires_after if status.ended_at is not None else None


def _counts(spec: BatchSpec, status: BatchStatus) -> MessageRequestCounts:
    counts, phase = status.counts, status.phase
    total = counts.total or spec.inline_requests
    if not phase.is_terminal:
        return MessageRequestCounts(processing=total, succeeded=0, errored=0, canceled=0, expired=0)
    # A batch that ended before its input was validated has counted nothing.
    unanswered = counts.unanswered if counts.total else total
    canceled = unanswered if phase is BatchPhase.CANCELLED else 0
    expired = unanswered if phase is BatchPhase.EXPIRED else 0
    errored = total - counts.completed - canceled - expired
    return MessageRequestCounts(
        processing=0, succeeded=counts.completed, errored=errored, canceled=canceled, expired=expired
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _time_if(seconds: float | None) -> str | None:
    return None if seconds is None else _time(seconds)
