"""One lookup per key at a time, shared by all callers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class Seen(Generic[V]):
    """The result of a lookup."""

    value: V
    began: float
    """Time at which the lookup began, on the clock of :class:`SharedLooks`. The value is no older than this."""


class SharedLooks(Generic[K, V]):
    """Keeps the newest result for each key, so that the cost does not grow with the number of callers.

    A caller that arrives during a lookup waits for its result; later callers get the same result while it is fresh.
    Errors are raised to all waiting callers and are not kept. A key must name everything that the result depends on,
    above all the tenant.
    """

    def __init__(self, fresh_seconds: float, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: ``fresh_seconds`` count from the start of a lookup; ``maximum`` results are kept, fresh or not."""
        self._fresh_seconds = fresh_seconds
        self._maximum = maximum
        self._clock = clock
        self._running: dict[K, asyncio.Task[V]] = {}
        self._seen: OrderedDict[K, Seen[V]] = OrderedDict()

    async def get(self, key: K, look: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return the fresh result for ``key``, or else that of the running lookup, or else that of a new ``look()``."""
        seen = self._seen.get(key)
        if seen and self.is_fresh(seen):
            return seen.value
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._look(key, look, self._clock()))
            self._running[key] = task
            task.add_done_callback(lambda ended: self._ended(key, ended))
        # Callers may be cancelled one by one, and none of them may cancel the lookup for the others.
        return await asyncio.shield(task)

    def is_fresh(self, seen: Seen[V]) -> bool:
        return self._clock() - seen.began <= self._fresh_seconds

    def last(self, key: K) -> Seen[V] | None:
        """Return the result of the newest successful lookup, however old, or ``None``."""
        return self._seen.get(key)

    def forget(self, key: K) -> None:
        """Drop the result for ``key`` and ignore that of a running lookup, so that the next caller starts a new one."""
        self._seen.pop(key, None)
        self._running.pop(key, None)

    async def _look(self, key: K, look: Callable[[], Coroutine[Any, Any, V]], began: float) -> V:
        value = await look()
        if self._running.get(key) is asyncio.current_task():
            self._seen[key] = Seen(value, began)
            self._seen.move_to_end(key)
            if len(self._seen) > self._maximum:
                self._seen.popitem(last=False)
        return value

    def _ended(self, key: K, task: asyncio.Task[V]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it if all callers have left
