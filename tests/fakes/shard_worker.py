"""One worker process with one shard, its store and its engine."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.cancel_watch import CancelWatch
from activities.process import Process
from activities.records import keys, shard_keys
from activities.records.shard_keys import ShardRef
from activities.results.records import RecordReader
from activities.results.shard_log import Committed, look_up
from activities.run_requests import RunRequests
from activities.upstreams.limiter import Limiter
from activities.upstreams.metrics import RequestMetrics
from activities.upstreams.slots import ShardSlots
from tests.fakes.worker import BATCH, CHAT, REF, TENANT, FakeEngine, ShakyStore, activity_environment, request_line
from workflows.types import RunRequestsInput, Shard, ShardResult

SHARD = ShardRef(REF, "c1", 0)


class FakeTemporal:
    """What is asked of it about a running activity."""

    def __init__(self, answer: Exception | None = None) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def get_async_activity_handle(self, *, task_token: bytes) -> FakeTemporal:
        return self

    async def heartbeat(self, said: Any, *, rpc_timeout: timedelta | None = None) -> None:
        self.asked.append(said)
        if self.answer:
            raise self.answer


class ShardWorker:
    """One worker process with one shard of ``requests`` lines."""

    def __init__(
        self, folder: Path, requests: int, *, in_flight: int = 8, interval: float = 0.0, replicas: int = 1
    ) -> None:
        self.folder = str(folder)
        self.in_flight = in_flight
        self.store = ShakyStore(self.folder)
        self.engine = FakeEngine()
        self.interval = interval
        self.limiter = Limiter(in_flight, replicas=replicas)
        self.slots = ShardSlots(self.limiter)
        self.activity = self.new_process()
        self.beats: list[Any] = []
        content = b"".join(request_line(number) for number in range(1, requests + 1))
        self.store.put(keys.input_key(REF), content)
        self.shard = Shard(0, len(content), 1, requests)

    def new_process(self) -> RunRequests:
        self.process = Process(1 << 20, CancelWatch(cast(Client, FakeTemporal())))
        return RunRequests(
            self.store, self.engine.client, self.limiter, self.slots, self.interval, RequestMetrics(), self.process
        )

    def start(
        self,
        attempt: int = 1,
        said: dict[str, Any] | None = None,
        temporal: Client | None = None,
        **changes: Any,
    ) -> tuple[asyncio.Task[ShardResult], ActivityEnvironment]:
        """Args: ``said`` is the last heartbeat of the attempts before; ``temporal`` answers questions."""
        environment, self.beats = activity_environment(attempt, *([said] if said else []), temporal=temporal)
        values: dict[str, Any] = {"index": 0, "shard": self.shard, "max_attempts": 3, "cut": SHARD.cut}
        task = RunRequestsInput(batch_id=BATCH, tenant=TENANT, endpoint=CHAT, **(values | changes))
        running = asyncio.ensure_future(environment.run(self.activity.run_requests, task))
        return running, environment

    async def run(self, attempt: int = 1, **changes: Any) -> ShardResult:
        return await self.start(attempt, **changes)[0]

    async def kill(self, running: asyncio.Task[ShardResult]) -> None:
        """As if the process went down: nothing of the attempt gets to the store any more. Another one takes over."""
        self.store.lost = True
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        self.store = ShakyStore(self.folder)
        self.limiter = Limiter(self.in_flight)
        self.slots = ShardSlots(self.limiter)
        self.activity = self.new_process()

    async def run_to_retry(self, attempt: int = 1, **changes: Any) -> ApplicationError:
        self.engine.sent.clear()
        with pytest.raises(ApplicationError) as caught:
            await self.run(attempt, **changes)
        self.settled()
        return caught.value

    def pass_pause(self) -> None:
        """As if the time until something may be sent again had passed."""
        for replica in self.limiter._replicas:  # pyright: ignore[reportPrivateUsage]
            for gate in (replica, *replica.lanes.values()):
                gate.paused_until = 0

    def settled(self) -> None:
        """Nothing of an attempt that has ended is left in the worker."""
        assert (self.limiter.in_flight, self.limiter.waiting, self.engine.in_flight) == (0, 0, 0)

    def lines(self, result: ShardResult, index: int = 0, cut: str = SHARD.cut) -> list[tuple[int, str, dict[str, Any]]]:
        """Line number, kind and content of each line of the object that counts."""
        reader = RecordReader(
            self.store.stream(shard_keys.result_key(SHARD._replace(number=index, cut=cut), result.attempt))
        )
        reader.shard_head()
        return [(r.line, r.kind, json.loads(b"".join(reader.line()))) for r in reader.records()]

    def committed(self) -> Committed:
        found = look_up(self.store, SHARD)
        assert isinstance(found, Committed)
        return found
