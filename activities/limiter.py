"""Requests in flight to one upstream: how many, whose turn, and when to hold back. Each upstream has a limiter.

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


FAILURES_IN_A_ROW: Final = 5
"""Requests without an answer after which a replica is set aside, if another one answers. One that fails at once is
always the least busy, and would fail nearly every request."""


class Signal(Enum):
    """What an answer says about the upstream."""

    ANSWERED = "answered"
    UNCLEAR = "unclear"
    DROPPED = "dropped"
    """Nothing: it was we who ended the request."""
    OVERLOADED = "overloaded"
    UNREACHABLE = "unreachable"


class Queue:
    """The requests of one shard that wait for their turn."""

    def __init__(self, batch_id: str, pending: list[int], start: Callable[[int, int], None]) -> None:
        """Args: ``pending`` are the caller's numbers for its requests; ``start`` is called with each in its turn, and
        with the number of the replica that it goes to.
        """
        self.batch_id = batch_id
        self.pending = deque(pending)
        self.start = start


class _Replica:
    """What is known of one of an upstream's servers."""

    def __init__(self, number: int, maximum: int, clock: Callable[[], float]) -> None:
        self.number = number
        self.in_flight = 0
        self.adaptive = AdaptiveLimit(maximum, clock)
        self.paused_until = float("-inf")
        self.answered_at = float("-inf")
        self.failures = 0
        self.wake: asyncio.TimerHandle | None = None
        self._clock = clock

    @property
    def pause_left(self) -> float:
        return max(0.0, self.paused_until - self._clock())

    @property
    def has_room(self) -> bool:
        return self.in_flight < int(self.adaptive.limit) and self.paused_until <= self._clock()


class Limiter:
    """Counts requests in flight, serves batches in turn, and adapts to what the upstream can take.

    An upstream is one server or several replicas of one: each has a limit and pauses of its own, and a request goes to
    the least busy that is not paused. While all are paused, nothing is sent.
    """

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic, replicas: int = 1) -> None:
        """Args: ``maximum`` is for each replica."""
        self.maximum = maximum * replicas
        self.in_flight = 0
        self.waiting = 0
        self.draining = False
        self.reason = ""
        """Why nothing is sent, for people; of the last pause."""
        self._blocked = 0
        self._drained_at = float("inf")
        self._clock = clock
        self._replicas = [_Replica(number, maximum, clock) for number in range(replicas)]
        self._batches: dict[str, deque[Queue]] = {}
        self._turns: deque[str] = deque()
        self._held_back: set[Callable[[], None]] = set()
        self._rate = 0.0
        self._rate_window = (clock(), 0)
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

    def finished(
        self, signal: Signal, sent_at: float, retry_after: float | None = None, reason: str = "", replica: int = 0
    ) -> None:
        """One request is in flight no more.

        Args:
            signal: what its end says about the replica.
            sent_at: when it was sent, by this limiter's clock.
            retry_after: seconds that the upstream asked for.
            reason: what went wrong, in words for people.
            replica: where it was sent.
        """
        server = self._replicas[replica]
        self.in_flight -= 1
        server.in_flight -= 1
        if signal in (Signal.OVERLOADED, Signal.UNREACHABLE):
            self.reason = reason
        self._measure()
        if signal is Signal.ANSWERED:
            server.answered_at = self._clock()
            server.failures = 0
            server.adaptive.answered(sent_at)
        elif signal is Signal.UNCLEAR:
            server.failures += 1
            if server.failures >= FAILURES_IN_A_ROW and self._others_answer(server):
                self._pause(server, server.adaptive.unreachable(sent_at, retry_after))
        elif signal is Signal.OVERLOADED:
            self._pause(server, server.adaptive.overloaded(sent_at, server.in_flight, retry_after))
        elif signal is Signal.UNREACHABLE:
            self._pause(server, server.adaptive.unreachable(sent_at, retry_after))
        self._dispatch()
        self.on_change()

    @property
    def limit(self) -> float:
        """Requests in flight at once, as the upstream takes them just now. A replica that is away counts as the one
        request that asks after it.
        """
        return sum(replica.adaptive.limit for replica in self._replicas)

    def now(self) -> float:
        return self._clock()

    @property
    def pause_left(self) -> float:
        """Seconds until something may be sent again."""
        return min(replica.pause_left for replica in self._replicas)

    @property
    def held_back(self) -> bool:
        return self.draining or self._blocked > 0 or self.pause_left > 0

    @property
    def drain_is_over(self) -> bool:
        return self.draining and self._clock() >= self._drained_at

    def answered_since(self, sent_at: float, replica: int = 0) -> bool:
        """Whether a replica has answered anything of late, as seen from a request that was sent at this time."""
        return self._replicas[replica].answered_at >= sent_at

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
        # What hangs at a replica that is away takes no room of the others'.
        free = sum(replica.adaptive.limit - replica.in_flight for replica in self._replicas if not replica.pause_left)
        return not self.held_back and self.waiting + expected < free + ahead

    def _dispatch(self) -> None:
        while self.waiting and not (self.draining or self._blocked) and (replica := self._least_busy()):
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
            replica.in_flight += 1
            queue.start(request, replica.number)

    def _least_busy(self) -> _Replica | None:
        if len(self._replicas) == 1:
            return self._replicas[0] if self._replicas[0].has_room else None
        free = [replica for replica in self._replicas if replica.has_room]
        return min(free, key=lambda replica: replica.in_flight) if free else None

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

    def _pause(self, replica: _Replica, seconds: float) -> None:
        if not seconds:
            return
        replica.paused_until = max(replica.paused_until, self._clock() + seconds)
        if replica.wake:
            replica.wake.cancel()
        # A little late rather than early: the clock must be past the pause when this runs.
        replica.wake = asyncio.get_running_loop().call_later(replica.pause_left + 0.001, self._pause_is_over)
        if self.held_back:
            self._hold_back()

    def _others_answer(self, replica: _Replica) -> bool:
        return any(other.answered_at > replica.answered_at for other in self._replicas)

    def _pause_is_over(self) -> None:
        self._dispatch()  # what waits while other replicas answer
        self.on_change()

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
