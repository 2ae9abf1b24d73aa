"""The history of a batch as a list of events. This extends OpenAI's API."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Final, Literal
from zlib import crc32

from fastapi import APIRouter, Query

from api.gateway.interface import BatchView, Gateway
from api.gateway.waits import duration
from api.http.auth import PathBatch
from api.http.errors import ApiError, no_batch_found, shown
from api.http.schemas import Listed, ListPage, error_responses
from workflows.details import end_reason
from workflows.events import PastWait
from workflows.types import BatchPhase, BatchRecord

MAX_EVENTS: Final = 1000
SHORTEST_WAIT: Final = 1
"""Minimum duration in seconds of a wait that is listed as an event."""

_ID: Final = re.compile(r"evt_[0-9]{10}_[0-9]_[0-9a-f]{8}")


class BatchEvent(Listed):
    object: Literal["batch.event"] = "batch.event"
    created_at: int
    """Unix time in seconds at which the event happened or began."""
    ended_at: int | None
    """Unix time in seconds at which a wait ended; ``None`` for a current wait and for every other event."""
    type: str
    message: str


class BatchEventList(ListPage[BatchEvent]):
    pass


def events_router(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/v1/batches", tags=["Batches"], responses=error_responses(401))

    async def list_events(
        ref: PathBatch, limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = MAX_EVENTS, after: str | None = None
    ) -> BatchEventList:
        """List what has happened to a batch and what it has waited for, oldest first. This extends OpenAI's API."""
        if after is not None and not _ID.fullmatch(after):
            raise ApiError(400, f"No event found with id '{shown(after)}'.", param="after")
        with no_batch_found(ref):
            view = await gateway.find(ref)
        found = [event for event in events_of(view, time.time()) if after is None or event.id > after]
        return BatchEventList.of(found[:limit], has_more=len(found) > limit)

    router.get("/{batch_id}/events", responses=error_responses(404, 503))(list_events)
    return router


def events_of(view: BatchView, now: float) -> list[BatchEvent]:
    """Return the events of a batch, the oldest first.

    An id contains the time of its event. So it stays the same when further events become known, and remains a position
    in the list even if its event has been merged into another one.

    Args: ``now`` is Unix time in seconds.
    """
    found: list[BatchEvent] = []
    for rank, group in enumerate((_created, _noted, _waits, _errors, _dropped, _ended)):
        of_second = Counter[int]()
        for event in group(view.record, int(now)):
            key = event.id or f"{of_second[event.created_at]:08d}"
            of_second[event.created_at] += 1
            found.append(event.model_copy(update={"id": f"evt_{event.created_at:010d}_{rank}_{key}"}))
    return sorted(found, key=lambda event: event.id)


def _event(at: int, kind: str, message: str, ended_at: int | None = None, key: str = "") -> BatchEvent:
    """Return an event. ``key`` distinguishes it from others of its group and second; without it they are numbered."""
    return BatchEvent(id=key, created_at=at, ended_at=ended_at, type=kind, message=message)


def _created(record: BatchRecord, now: int) -> Iterator[BatchEvent]:
    first = record.spec.retry_of
    yield _event(record.spec.created_at, "created", f"Created to retry {first}." if first else "Created.")


def _noted(record: BatchRecord, now: int) -> Iterator[BatchEvent]:
    for event in record.status.history.events:
        yield _event(event.at, event.type.value, event.message)


def _waits(record: BatchRecord, now: int) -> Iterator[BatchEvent]:
    for wait in record.status.history.waits:
        if wait.times > 1 or (wait.ended or now) - wait.began >= SHORTEST_WAIT:
            key = f"{crc32(f'{wait.kind} {wait.subject}'.encode()):08x}"
            yield _event(wait.began, "wait", _wait_text(wait, now), wait.ended, key)


def _wait_text(wait: PastWait, now: int) -> str:
    lasted = duration((wait.ended or now) - wait.began)
    if wait.ended is None:
        return f"Waiting for {lasted} so far: {wait.text}."
    return f"Waited {f'{wait.times} times within ' if wait.times > 1 else ''}{lasted}: {wait.text}."


def _errors(record: BatchRecord, now: int) -> Iterator[BatchEvent]:
    if ended_at := _ended_at(record):
        for one in record.status.error_summary:
            line = f" (first line {one.first_lines[0]})" if one.first_lines else ""
            yield _event(ended_at, "errors", f"{one.count:,} × {one.code}{line}")


def _dropped(record: BatchRecord, now: int) -> Iterator[BatchEvent]:
    if (dropped := record.status.history.dropped) and (ended_at := _ended_at(record)):
        yield _event(ended_at, "dropped", f"{dropped:,} more events and waits are not listed.")


def _ended_at(record: BatchRecord) -> int | None:
    return record.status.ended_at if record.status.phase.is_terminal else None


def _ended(record: BatchRecord, now: int) -> Iterator[BatchEvent]:
    spec, status, counts = record.spec, record.status, record.status.counts
    if (ended_at := _ended_at(record)) is None:
        return
    if status.phase in (BatchPhase.FAILED, BatchPhase.EXPIRED):
        said = end_reason(spec, status)
    elif counts.total and counts.failed == counts.total:
        said = f"All {counts.total:,} requests failed." if counts.total > 1 else "The only request failed."
    else:
        said = f"{counts.total:,} requests, {counts.completed:,} completed, {counts.failed:,} failed."
    lasted = duration(ended_at - spec.created_at)
    yield _event(ended_at, status.phase.value, f"{status.phase.capitalize()} after {lasted}. {said}")
