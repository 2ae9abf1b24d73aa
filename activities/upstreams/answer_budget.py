"""Limits the memory that responses take in a process, in total."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator


class AnswerBudget:
    """Bytes of answers at once: of those that are being read, and of those that wait to be stored.

    Who finds it used up waits, and so does what the server has still to send, in its connection. One answer at a time
    may go beyond: else several that have come in part could wait for each other for ever. So an answer's largest size
    is all that there can be too much. A worker has another budget of the same size for the requests of its shards.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._beyond: Held | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.used = 0

    def held(self) -> Held:
        """For one answer; release it, whatever becomes of that."""
        return Held(self)

    @contextlib.asynccontextmanager
    async def hold(self, count: int) -> AsyncGenerator[None]:
        """Wait until so many bytes may be held, and hold them for a time."""
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
        # All of them look again, the longest waiting first: how much each needs is not known here.
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
        """Wait until so many more bytes may be held."""
        await self._budget.take(self, count)
        self._bytes += count

    def release(self) -> None:
        """Give all of it back. May be repeated."""
        if self._bytes:
            count, self._bytes = self._bytes, 0
            self._budget.give_back(self, count)
