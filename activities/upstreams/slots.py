"""When a worker asks Temporal for a shard: only while its limiter has room to run one."""

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
"""Shards that tell how large the next may be. Were it the last alone, then after each single request of a small batch
several polls would go out and bring as many large shards at once."""


ANTECHAMBER: Final = 8
"""Requests that may wait in a worker that is full: those of small batches and of first shards."""


class RoomForRequests(CustomSlotSupplier):
    """Lets the worker poll for a shard only while its limiter has room to run one.

    A poll that is out may bring a shard of any size; it is taken to be as large as the largest of the last few.
    """

    def __init__(self, limiter: Limiter, antechamber: Antechamber | None = None) -> None:
        """Build it on the worker's event loop. Args: ``antechamber`` shares the limiter, and goes first."""
        self._limiter = limiter
        self._antechamber = antechamber
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
        """Around the time in which the limiter counts the requests of a shard that has arrived.

        Args:
            requests: in the shard.
            waiting: how many of them have not been sent yet.
        """
        attempt = asyncio.current_task()
        assert attempt
        self._attempts.add(attempt)
        self._running.append(waiting)
        self._sizes.append(requests)
        self._loop.call_soon(self._let_in)
        try:
            yield
        finally:
            self._running.remove(waiting)
            self._attempts.discard(attempt)

    def clear(self) -> None:
        """Cancel the shards that run, also what they have in flight. For a worker that drains."""
        for attempt in self._attempts:
            attempt.cancel()

    @property
    def waiting(self) -> int:
        """Requests that are here and not sent."""
        return sum(waiting() for waiting in self._running)

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        while not self._has_room():
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._let_in()  # it may have been woken already: pass that on
                raise
        permit = SlotPermit()
        self._reserved.add(permit)
        self._let_in()  # there may be room for another
        return permit

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        return None  # eager activities would go round the queue and its fairness

    # The SDK calls the next two from threads of its own.

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        self._loop.call_soon_threadsafe(self._mark_used, ctx.permit)

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        self._loop.call_soon_threadsafe(self._release, ctx.permit)

    def _mark_used(self, permit: SlotPermit) -> None:
        self._reserved.discard(permit)
        self._used.add(permit)
        self._let_in()  # its shard may be running already

    def _release(self, permit: SlotPermit) -> None:
        self._reserved.discard(permit)
        self._used.discard(permit)
        self._let_in()

    def _has_room(self) -> bool:
        # What waits in the antechamber does not close the door: else small batches could keep large ones out.
        ahead = self._antechamber.waiting if self._antechamber else 0
        return self._limiter.room(self._expected(int(self._limiter.limit)) - ahead)

    def _expected(self, unknown: int) -> int:
        """Requests on their way here. Args: ``unknown`` is the size of a shard while none has been seen."""
        on_their_way = len(self._reserved) + max(0, len(self._used) - len(self._running))
        return on_their_way * max(self._sizes, default=unknown)

    def _changed(self) -> None:
        if self._antechamber:
            self._antechamber._let_in()
        self._let_in()

    def _let_in(self) -> None:
        while self._waiters and self._has_room():
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return  # the next is woken by this one, when it has taken its room


class Antechamber(RoomForRequests):
    """Lets a worker that is full take in some requests still, of batches that it may not have yet."""

    def _has_room(self) -> bool:
        expected = self._expected(1)
        if self._limiter.room(expected):
            return True
        may_wait = not (self._limiter.is_paused or self._limiter.only_looks)
        return may_wait and self.waiting + expected < ANTECHAMBER
