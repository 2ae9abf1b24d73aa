"""Why nothing of a batch is in flight, where nobody else says it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from api.gateway.interface import Progress
from api.gateway.pending import Pending
from api.gateway.readiness import CannotWriteError, Readiness
from api.gateway.standstill import SILENT_SECONDS, Standstill
from workflows.types import BatchMemo, BatchPhase, BatchStatus, Counts

QUEUED = Pending(shard=0, completed=0, failed=0, in_flight=0, limit=None, wait=None, next_attempt_at=None)


class FakeTemporal:
    """Temporal with some running batches."""

    def __init__(self, batches: dict[str, Counts]) -> None:
        self.batches = batches
        self.asked = 0
        self.is_full = False
        self.is_away = False

    async def list_workflows(self, query: str, limit: int) -> AsyncIterator[Any]:
        self.asked += 1
        if self.is_away:
            raise RPCError("away", RPCStatusCode.UNAVAILABLE, b"")
        for batch_id, counts in self.batches.items():

            async def memo_value(key: str, default: None, *, type_hint: type, counts: Counts = counts) -> BatchMemo:
                return BatchMemo(written_at=0, phase=BatchPhase.IN_PROGRESS, counts=counts)

            yield SimpleNamespace(id=batch_id, memo_value=memo_value)

    async def has_worker(self) -> bool:
        if self.is_full:
            raise CannotWriteError
        return True


LATER = 3600.0
"""Seconds: the test process may be slow."""


def running(seconds: float = 60) -> BatchStatus:
    return BatchStatus(phase=BatchPhase.IN_PROGRESS, in_progress_at=int(time.time() - seconds), counts=Counts(total=40))


class World:
    def __init__(self, **batches: Counts) -> None:
        self.temporal = FakeTemporal({"batch_1": Counts(total=40), **batches})
        temporal = cast(Any, self.temporal)
        self.standstill = Standstill(cast(Client, temporal), "everbatch", cast(Readiness, temporal), "t:1")

    async def reason(
        self, status: BatchStatus | None = None, pending: Pending = QUEUED, progress: Progress | None = None
    ) -> str | None:
        progress = progress or Progress(in_flight=pending.in_flight)
        wait = await self.standstill.wait("batch_1", status or running(), [pending], progress)
        return wait.text if wait else None


async def test_it_says_how_many_requests_of_others_are_before_it() -> None:
    world = World(batch_2=Counts(total=5000, completed=60, failed=3), batch_3=Counts(total=1))
    expected = "other batches come first: 4,938 of their requests wait or are in flight"
    assert await world.reason() == expected
    assert await world.reason() == expected
    assert world.temporal.asked == 1  # shared by all who ask


@pytest.mark.parametrize(
    ("status", "pending", "progress", "reason"),
    [
        (running(-LATER), QUEUED, Progress(in_flight=0), None),
        (running(), replace(QUEUED, in_flight=2, heartbeat_at=time.time() + LATER), Progress(in_flight=2), None),
        (running().model_copy(update={"phase": BatchPhase.FINALIZING}), QUEUED, Progress(in_flight=0), None),
    ],
)
async def test_nobody_is_asked_where_the_reason_is_known_or_something_goes_on(
    status: BatchStatus, pending: Pending, progress: Progress, reason: str | None
) -> None:
    world = World(batch_2=Counts(total=9))
    assert await world.reason(status, pending, progress) == reason
    assert world.temporal.asked == 0


async def test_a_full_database_of_temporal_is_named() -> None:
    world = World()
    assert await world.reason() is None
    world.temporal.is_full = True
    full = "Temporal at t:1 takes no new workflows; its database may be full"
    assert await world.reason() == full
    # What runs cannot say that it does: nothing that it sends is written.
    silent = replace(QUEUED, in_flight=5, heartbeat_at=time.time() - SILENT_SECONDS - 1)
    assert await World(batch_2=Counts(total=9)).reason(pending=silent) is None
    assert await world.reason(pending=silent) == full


async def test_without_an_answer_there_is_no_reason() -> None:
    world = World(batch_2=Counts(total=9))
    world.temporal.is_away = True
    assert await world.reason() is None
