"""Limits the memory that responses take in a process, in total."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator


class AnswerBudget:
    """The bytes of answers that a process may hold: answers that are being read, and answers that wait to be stored.

    A reader waits while the budget is used up, and the rest of its answer waits in the connection. One answer at a time
    may exceed the budget: otherwise several answers that are read in part could wait for each other indefinitely. So
    the budget is exceeded by at most the largest size of one answer. A worker has a second budget of the same size for
    the requests of its shards.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._beyond: Held | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.used = 0

    def held(self) -> Held:
        """Return the share of one answer. The caller must release it, also if the answer fails."""
        return Held(self)

    @contextlib.asynccontextmanager
    async def hold(self, count: int) -> AsyncGenerator[None]:
        """Wait until ``count`` bytes may be held, and hold them within the context."""
        holder = self.held()
        await holder.grow(count)
        try:
            yield
        finally:
            holder.release()

    async def take(self, holder: Held, count: int) -> None:
        while self.used + count > self._maximum and self._beyond is not holder:
            if self._beyond is None:
                self._beyond = holder
                break
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self.used += count

    def give_back(self, holder: Held, count: int) -> None:
        self.used -= count
        if self._beyond is holder:
            self._beyond = None
        # Wake all waiters, the longest waiting first, to check again: how much each needs is not known here.
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)


class Held:
    """One answer's share of the budget."""

    def __init__(self, budget: AnswerBudget) -> None:
        self._budget = budget
        self._bytes = 0

    async def grow(self, count: int) -> None:
        """Wait until ``count`` more bytes may be held."""
        await self._budget.take(self, count)
        self._bytes += count

    def release(self) -> None:
        """Return all bytes to the budget. May be called repeatedly."""
        if self._bytes:
            count, self._bytes = self._bytes, 0
            self._budget.give_back(self, count)
