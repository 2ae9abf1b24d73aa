"""One worker process with one shard, its store and its engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import catalog
from activities.limiter import Limiter, RoomForRequests
from activities.metrics import RequestMetrics
from activities.results import Committed, RecordReader, look_up
from activities.run_requests import RunRequests
from tests.fakes.worker import BATCH, CHAT, TENANT, FakeEngine, ShakyStore, activity_environment, request_line
from workflows.types import RunRequestsInput, Shard, ShardResult


class ShardWorker:
    """One worker process with one shard of ``requests`` lines."""

    def __init__(
        self, folder: Path, requests: int, *, in_flight: int = 8, interval: float = 0.0, replicas: int = 1
    ) -> None:
        self.store = ShakyStore(str(folder))
        self.engine = FakeEngine()
        self.limiter = Limiter(in_flight, replicas=replicas)
        self.room = RoomForRequests(self.limiter)
        self.activity = RunRequests(self.store, self.engine.client, self.limiter, self.room, interval, RequestMetrics())
        self.beats: list[Any] = []
        content = b"".join(request_line(number) for number in range(1, requests + 1))
        self.store.put(catalog.input_key(TENANT, BATCH), content)
        self.shard = Shard(0, len(content), 1, requests)

    def start(self, attempt: int = 1, **changes: Any) -> tuple[asyncio.Task[ShardResult], ActivityEnvironment]:
        environment, self.beats = activity_environment(attempt)
        values: dict[str, Any] = {"index": 0, "shard": self.shard, "max_attempts": 3}
        task = RunRequestsInput(batch_id=BATCH, tenant=TENANT, endpoint=CHAT, **(values | changes))
        running = asyncio.ensure_future(environment.run(self.activity.run_requests, task))
        return running, environment

    async def run(self, attempt: int = 1, **changes: Any) -> ShardResult:
        return await self.start(attempt, **changes)[0]

    async def run_to_retry(self, attempt: int = 1) -> ApplicationError:
        self.engine.sent.clear()
        with pytest.raises(ApplicationError) as caught:
            await self.run(attempt)
        self.settled()
        return caught.value

    def pass_pause(self) -> None:
        """As if the time until something may be sent again had passed."""
        for replica in self.limiter._replicas:  # pyright: ignore[reportPrivateUsage]
            replica.paused_until = 0

    def settled(self) -> None:
        """Nothing of an attempt that has ended is left in the worker."""
        assert (self.limiter.in_flight, self.limiter.waiting, self.engine.in_flight) == (0, 0, 0)

    def lines(self, result: ShardResult, index: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
        """Line number, kind and content of each line of the object that counts."""
        reader = RecordReader(self.store.stream(catalog.result_key(TENANT, BATCH, index, result.attempt)))
        reader.shard_head()
        return [(r.line, r.kind, json.loads(b"".join(reader.line()))) for r in reader.records()]

    def committed(self) -> Committed:
        found = look_up(self.store, TENANT, BATCH, 0)
        assert isinstance(found, Committed)
        return found
