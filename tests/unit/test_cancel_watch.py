"""Shards learn that their batch is cancelled from one of them, and only those of that batch."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any, cast

from temporalio.activity import ActivityCancellationDetails
from temporalio.client import AsyncActivityCancelledError, Client

from activities.cancel_watch import CancelWatch
from tests.fakes.worker import until
from workflows.types import ShardProgress


class FakeTemporal:
    """Answers heartbeats by the task token."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Exception] = {}
        self._token = b""

    def get_async_activity_handle(self, *, task_token: bytes) -> FakeTemporal:
        asked = FakeTemporal()
        asked.answers, asked._token = self.answers, task_token
        return asked

    async def heartbeat(self, said: Any, *, rpc_timeout: timedelta) -> None:
        if answer := self.answers.get(self._token):
            raise answer


CANCELLED = AsyncActivityCancelledError(ActivityCancellationDetails(cancel_requested=True))
PAUSED = AsyncActivityCancelledError(ActivityCancellationDetails(paused=True))


class World:
    def __init__(self) -> None:
        self.temporal = FakeTemporal()
        self.watch = CancelWatch(cast(Client, self.temporal))
        self.notified: list[str] = []

    def shard(self, run: str, token: str) -> contextlib.AbstractAsyncContextManager[None]:
        return self.watch.watched(run, token.encode(), ShardProgress, lambda: self.notified.append(token))


async def test_all_shards_of_a_run_are_notified_and_those_that_begin_later() -> None:
    world = World()
    async with world.shard("run-1", "a"), world.shard("run-1", "b"), world.shard("run-2", "c"):
        world.temporal.answers[b"b"] = CANCELLED
        await until(lambda: set(world.notified) == {"a", "b"})
        async with world.shard("run-1", "late"):
            assert world.notified[-1] == "late"
    async with world.shard("run-1", "again"):  # of a run whose shards have all ended, Temporal is asked again
        assert "again" not in world.notified


async def test_a_pause_is_not_taken_for_a_cancel_and_an_error_does_not_end_the_watch() -> None:
    world = World()
    world.temporal.answers |= {b"paused": PAUSED, b"broken": RuntimeError("no codec")}
    async with world.shard("run-1", "paused"), world.shard("run-2", "broken"), world.shard("run-3", "c"):
        await asyncio.sleep(0)
        world.temporal.answers[b"c"] = CANCELLED
        await until(lambda: "c" in world.notified)
        world.temporal.answers[b"broken"] = CANCELLED
        await until(lambda: "broken" in world.notified)
    assert "paused" not in world.notified
