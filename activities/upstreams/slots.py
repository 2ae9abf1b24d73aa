"""Decides when a worker polls Temporal for a shard: only while its limiter can run one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Generator
from typing import Final

from temporalio.worker import (
    CustomSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)

from activities.upstreams.limiter import Limiter

RECENT_SHARDS: Final = 10
"""Number of recent shards whose largest size is the expected size of the next. If only the last one counted, the worker
would start several polls after each single request of a small batch, and could receive as many large shards at once."""

MAX_FIRST_WAITING: Final = 8
"""Maximum number of requests of small batches and of first shards that may wait in a full worker."""


class ShardSlots(CustomSlotSupplier):
    """Lets the worker poll for a shard only while its limiter can run one.

    A pending poll may return a shard of any size; it is assumed to be as large as the largest recent one.
    """

    def __init__(self, limiter: Limiter, first_slots: FirstShardSlots | None = None) -> None:
        """Call this on the worker's event loop. Args: ``first_slots`` shares the limiter, and takes precedence."""
        self._limiter = limiter
        self._first_slots = first_slots
        self._loop = asyncio.get_running_loop()
        self._reserved: set[SlotPermit] = set()
        self._used: set[SlotPermit] = set()
        self._running: list[Callable[[], int]] = []
        self._attempts: set[asyncio.Task[object]] = set()
        self._sizes: deque[int] = deque(maxlen=RECENT_SHARDS)
        self._waiters: deque[asyncio.Future[None]] = deque()
        limiter.on_change = self._changed

    @contextlib.contextmanager
    def running(self, requests: int, waiting: Callable[[], int]) -> Generator[None]:
        """Count a shard as arrived within the context, in which the limiter itself counts the shard's requests.

        Args:
            requests: number of requests in the shard.
            waiting: returns how many of them have not been sent yet.
        """
        attempt = asyncio.current_task()
        assert attempt
        self._attempts.add(attempt)
        self._running.append(waiting)
        self._sizes.append(requests)
        self._loop.call_soon(self._wake_next)
        try:
            yield
        finally:
            self._running.remove(waiting)
            self._attempts.discard(attempt)

    def clear(self) -> None:
        """Cancel all running shards, including their requests in flight, because the worker is draining."""
        for attempt in self._attempts:
            attempt.cancel()

    @property
    def waiting(self) -> int:
        """Number of requests of running shards that have not been sent yet."""
        return sum(waiting() for waiting in self._running)

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        while not self._may_poll():
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake_next()  # this waiter may already have been woken: wake another one instead
                raise
        permit = SlotPermit()
        self._reserved.add(permit)
        self._wake_next()  # there may be capacity for another
        return permit

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        return None  # eager activities would bypass the task queue and its fairness

    # The SDK calls the next two from threads of its own.

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        self._loop.call_soon_threadsafe(self._mark_used, ctx.permit)

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        self._loop.call_soon_threadsafe(self._release, ctx.permit)

    def _mark_used(self, permit: SlotPermit) -> None:
        self._reserved.discard(permit)
        self._used.add(permit)
        self._wake_next()  # its shard may be running already

    def _release(self, permit: SlotPermit) -> None:
        self._reserved.discard(permit)
        self._used.discard(permit)
        self._wake_next()

    def _may_poll(self) -> bool:
        # Requests of first shards do not count as waiting: otherwise small batches could keep large ones out.
        ahead = self._first_slots.waiting if self._first_slots else 0
        return self._limiter.may_fetch(self._expected(int(self._limiter.limit)) - ahead)

    def _expected(self, unknown: int) -> int:
        """Return the number of requests to expect from pending polls and from shards that are about to run, where
        ``unknown`` is the assumed size of a shard before the first one has arrived.
        """
        on_their_way = len(self._reserved) + max(0, len(self._used) - len(self._running))
        return on_their_way * max(self._sizes, default=unknown)

    def _changed(self) -> None:
        if self._first_slots:
            self._first_slots._wake_next()
        self._wake_next()

    def _wake_next(self) -> None:
        while self._waiters and self._may_poll():
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return  # this waiter wakes the next one after it has reserved its slot


class FirstShardSlots(ShardSlots):
    """Lets a full worker still accept a few requests, so that batches that have nothing in flight get started."""

    def _may_poll(self) -> bool:
        expected = self._expected(1)
        if self._limiter.may_fetch(expected):
            return True
        may_wait = not (self._limiter.is_paused or self._limiter.is_all_paused)
        return may_wait and self.waiting + expected < MAX_FIRST_WAITING
