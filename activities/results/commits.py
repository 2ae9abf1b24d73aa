"""Commits the answers of a shard shortly after they arrive, and retries for as long as the store is down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from temporalio import activity

from activities.results.shard_log import ShardLog
from activities.store.object_store import ObjectNotFoundError, StoreError
from activities.upstreams.answer_budget import Held
from activities.upstreams.limiter import Limiter
from activities.upstreams.metrics import RequestMetrics
from workflows.waits import Wait, WaitKind

T = TypeVar("T")

STORE_RETRY_SECONDS: Final = 1.0


class Commits:
    """Commits the answers of one attempt at a shard as they arrive. While the store is down, nothing more is sent."""

    def __init__(self, log: ShardLog, limiter: Limiter, metrics: RequestMetrics, interval: float) -> None:
        """Args: ``interval`` is the maximum time in seconds that an answer waits for others to be committed with."""
        self._log = log
        self._limiter = limiter
        self._metrics = metrics
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None  # loop time of the first answer that is not committed
        self._held: list[Held] = []  # memory of large answers that are not committed
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.wait: Wait | None = None
        """The wait for the store, while answers cannot be committed."""

    def hold(self, held: Held) -> None:
        """Release the memory of a large answer once it is stored."""
        self._held.append(held)

    def release_all(self) -> None:
        self._release(self._held)

    def soon(self) -> None:
        """Commit the log's uncommitted answers, if there are any, within the interval."""
        if not self._log.has_uncommitted:
            return
        if self._waiting_since is None:
            self._waiting_since = self._loop.time()
        if not self._timer and not self._task:
            self._timer = self._loop.call_later(self._interval, self._begin)

    async def settle(self) -> None:
        """Wait for the commit in progress, and begin no other."""
        if self._task:
            await asyncio.shield(self._task)  # a pause that cancels this call must not cancel the commit
        if self._timer:  # checked after the task, which may have set it
            self._timer.cancel()

    async def drop(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def until_stored(self, store: Callable[[], Awaitable[T]]) -> T:
        """Store answers, however long the store is down: they are paid for, so no attempt may end without them.

        Raises:
            ObjectNotFoundError: the shard's parts no longer exist, and there is no result.
        """
        blocked = False
        try:
            while True:
                try:
                    held, self._held = self._held, []
                    try:
                        stored = await store()
                    except BaseException:
                        self._held[:0] = held
                        raise
                    self._release(held)
                    self._log.waits.end(WaitKind.STORE)
                    self._measure()
                    return stored
                except ObjectNotFoundError:
                    raise  # the parts are deleted and there is no result: waiting does not bring them back
                except StoreError as error:
                    if not blocked:
                        blocked = True
                        activity.logger.warning("cannot write to the store, holding answers in memory: %s", error)
                        self.wait = self._limiter.wait = error.wait
                        self._limiter.block()
                    await asyncio.sleep(STORE_RETRY_SECONDS)
        finally:
            if blocked:
                self.wait = None
                self._limiter.unblock()

    def _begin(self) -> None:
        self._timer = None
        self._task = self._loop.create_task(self._commit())

    async def _commit(self) -> None:
        await self.until_stored(self._log.commit)
        self._task = None
        self.soon()  # for answers that arrived during the commit

    def _release(self, held: list[Held]) -> None:
        for one in held:
            one.release()

    def _measure(self) -> None:
        now = self._loop.time()
        if self._waiting_since is not None:
            self._metrics.committed(now - self._waiting_since)
        self._waiting_since = now if self._log.has_uncommitted else None
