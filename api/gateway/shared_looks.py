"""One lookup of each key at a time, shared by all callers."""

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
    """When the look began, on the clock of :class:`SharedLooks`: the value is no older."""


class SharedLooks(Generic[K, V]):
    """Keeps the newest result for each key, so that the cost does not grow with the number of callers.

    Who asks while a look is under way waits for that one; who asks later gets what it found, for as long as it is
    fresh. Errors go to all who wait and are not kept. A key must name everything that the answer depends on, the tenant
    above all.
    """

    def __init__(self, fresh_seconds: float, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: ``maximum`` looks are kept, fresh or not; ``fresh_seconds`` count from the begin of a look."""
        self._fresh_seconds = fresh_seconds
        self._maximum = maximum
        self._clock = clock
        self._running: dict[K, asyncio.Task[V]] = {}
        self._seen: OrderedDict[K, Seen[V]] = OrderedDict()

    async def get(self, key: K, look: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """What is to be seen at ``key``; ``look`` is called where nobody looks and nothing fresh is known."""
        seen = self._seen.get(key)
        if seen and self.is_fresh(seen):
            return seen.value
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._look(key, look, self._clock()))
            self._running[key] = task
            task.add_done_callback(lambda ended: self._ended(key, ended))
        # Those who ask may leave one by one, and none of them takes the look away from the others.
        return await asyncio.shield(task)

    def is_fresh(self, seen: Seen[V]) -> bool:
        return self._clock() - seen.began <= self._fresh_seconds

    def last(self, key: K) -> Seen[V] | None:
        """The newest look that ended well, however old."""
        return self._seen.get(key)

    def forget(self, key: K) -> None:
        """Whoever asks from now on sees what is there from now on."""
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
            task.exception()  # seen, though all who asked may have left
