"""Requests in flight to one upstream: how many, whose turn, and when to hold back.

The worker takes a shard from Temporal only when it has room to run it. Shards that wait inside a worker can be
reached by neither Temporal's fairness nor a second worker, so what waits here is kept as small as throughput
allows. All of it lives on the worker's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator
from enum import Enum
from typing import Final

from temporalio.worker import (
    CustomSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)

from activities.adaptive_limit import AdaptiveLimit

AHEAD: Final = 0.05
"""Seconds of work fetched ahead: about what taking a shard from Temporal and reading its input costs."""


RECENT_SHARDS: Final = 10
"""Shards that tell how large the next may be. Were it the last alone, then after each single request of a small batch
several polls would go out and bring as many large shards at once."""


class Signal(Enum):
    """What an answer says about the upstream."""

    ANSWERED = "answered"
    UNCLEAR = "unclear"
    OVERLOADED = "overloaded"
    UNREACHABLE = "unreachable"


class Queue:
    """The requests of one shard that wait for their turn."""

    def __init__(self, batch_id: str, pending: list[int], start: Callable[[int], None]) -> None:
        """Args: ``pending`` are the caller's numbers for its requests; ``start`` is called with each in its turn."""
        self.batch_id = batch_id
        self.pending = deque(pending)
        self.start = start


class Limiter:
    """Counts requests in flight, serves batches in turn, and adapts to what the upstream can take."""

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.maximum = maximum
        self.in_flight = 0
        self.waiting = 0
        self.draining = False
        self.reason = ""
        """Why nothing is sent, for people; of the last pause."""
        self._blocked = 0
        self._drained_at = float("inf")
        self._answered_at = float("-inf")
        self._clock = clock
        self._batches: dict[str, deque[Queue]] = {}
        self._turns: deque[str] = deque()
        self._adaptive = AdaptiveLimit(maximum, clock)
        self._paused_until = float("-inf")
        self._held_back: set[Callable[[], None]] = set()
        self._rate = 0.0
        self._rate_window = (clock(), 0)
        self._wake: asyncio.TimerHandle | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called when there may be room again."""

    # Serving requests in turn

    def add(self, queue: Queue, held_back: Callable[[], None]) -> None:
        """Take in a shard's requests. ``held_back`` is called when no more of them should be sent for now."""
        self._held_back.add(held_back)
        if self.held_back:
            held_back()
            return
        if queue.batch_id not in self._batches:
            self._batches[queue.batch_id] = deque()
            self._turns.append(queue.batch_id)
        self._batches[queue.batch_id].append(queue)
        self.waiting += len(queue.pending)
        self._dispatch()

    def withdraw(self, queue: Queue) -> None:
        """Take a shard's waiting requests back; those in flight stay."""
        queues = self._batches.get(queue.batch_id)
        if queues and queue in queues:
            queues.remove(queue)
            self.waiting -= len(queue.pending)
            if not queues:
                self._forget(queue.batch_id)
        queue.pending.clear()
        self.on_change()

    def leave(self, held_back: Callable[[], None]) -> None:
        self._held_back.discard(held_back)

    def finished(self, signal: Signal, sent_at: float, retry_after: float | None = None, reason: str = "") -> None:
        """One request is in flight no more.

        Args:
            signal: what its end says about the upstream.
            sent_at: when it was sent, by this limiter's clock.
            retry_after: seconds that the upstream asked for.
            reason: what went wrong, in words for people.
        """
        self.in_flight -= 1
        if signal in (Signal.OVERLOADED, Signal.UNREACHABLE):
            self.reason = reason
        self._measure()
        if signal is Signal.ANSWERED:
            self._answered_at = self._clock()
            self._adaptive.answered(sent_at)
        elif signal is Signal.OVERLOADED:
            self._pause(self._adaptive.overloaded(sent_at, self.in_flight, retry_after))
        elif signal is Signal.UNREACHABLE:
            self._pause(self._adaptive.unreachable(sent_at, retry_after))
        self._dispatch()
        self.on_change()

    @property
    def limit(self) -> float:
        """Requests in flight at once, as the upstream takes them just now."""
        return self._adaptive.limit

    def now(self) -> float:
        return self._clock()

    @property
    def pause_left(self) -> float:
        """Seconds until something may be sent again."""
        return max(0.0, self._paused_until - self._clock())

    @property
    def held_back(self) -> bool:
        return self.draining or self._blocked > 0 or self.pause_left > 0

    @property
    def drain_is_over(self) -> bool:
        return self.draining and self._clock() >= self._drained_at

    def answered_since(self, sent_at: float) -> bool:
        """Whether the upstream has answered anything of late, as seen from a request that was sent at this time."""
        return self._answered_at >= sent_at

    def block(self) -> None:
        """Send nothing until :meth:`unblock`: answers could not be stored. Calls nest."""
        self._blocked += 1
        self._hold_back()

    def unblock(self) -> None:
        self._blocked -= 1
        self.on_change()

    def drain(self, seconds: float) -> None:
        """Send nothing more: the process is about to stop. Requests in flight have so long to end."""
        self.draining = True
        self._drained_at = self._clock() + seconds
        self._hold_back()

    def room(self, expected: int) -> bool:
        """Whether to fetch more, when ``expected`` requests are on their way here already."""
        ahead = max(self._rate * AHEAD, 1.0)
        return not self.held_back and self.in_flight + self.waiting + expected < self.limit + ahead

    def _dispatch(self) -> None:
        while self.waiting and self.in_flight < int(self.limit) and not self.held_back:
            batch_id = self._turns[0]
            self._turns.rotate(-1)
            queues = self._batches[batch_id]
            queue = queues[0]
            request = queue.pending.popleft()
            if not queue.pending:
                queues.popleft()
                if not queues:
                    self._forget(batch_id)
            self.waiting -= 1
            self.in_flight += 1
            queue.start(request)

    def _forget(self, batch_id: str) -> None:
        del self._batches[batch_id]
        self._turns.remove(batch_id)

    # Adapting

    def _measure(self) -> None:
        since, count = self._rate_window
        elapsed = self._clock() - since
        if elapsed >= 0.1:
            self._rate = (self._rate + (count + 1) / elapsed) / 2
            self._rate_window = (self._clock(), 0)
        else:
            self._rate_window = (since, count + 1)

    def _pause(self, seconds: float) -> None:
        if not seconds:
            return
        self._paused_until = max(self._paused_until, self._clock() + seconds)
        if self._wake:
            self._wake.cancel()
        # A little late rather than early: the clock must be past the pause when this runs.
        self._wake = asyncio.get_running_loop().call_later(self.pause_left + 0.001, self.on_change)
        self._hold_back()

    def _hold_back(self) -> None:
        for held_back in list(self._held_back):
            held_back()


class RoomForRequests(CustomSlotSupplier):
    """Lets the worker poll for a shard only while its limiter has room to run one.

    A poll that is out may bring a shard of any size; it is taken to be as large as the largest of the last few.
    """

    def __init__(self, limiter: Limiter) -> None:
        """Build it on the worker's event loop."""
        self._limiter = limiter
        self._loop = asyncio.get_running_loop()
        self._reserved: set[SlotPermit] = set()
        self._used: set[SlotPermit] = set()
        self._running = 0
        self._sizes: deque[int] = deque(maxlen=RECENT_SHARDS)
        self._waiters: deque[asyncio.Future[None]] = deque()
        limiter.on_change = self._let_in

    @contextlib.contextmanager
    def running(self, requests: int) -> Generator[None]:
        """Around the time in which the limiter counts the requests of a shard that has arrived."""
        self._running += 1
        self._sizes.append(requests)
        self._let_in()
        try:
            yield
        finally:
            self._running -= 1

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
        on_their_way = len(self._reserved) + max(0, len(self._used) - self._running)
        return self._limiter.room(on_their_way * max(self._sizes, default=self._limiter.maximum))

    def _let_in(self) -> None:
        while self._waiters and self._has_room():
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return  # the next is woken by this one, when it has taken its room
