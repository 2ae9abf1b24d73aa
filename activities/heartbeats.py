"""Sends the heartbeats of running shards and of other long activities, which may run blocking work in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from temporalio import activity
from temporalio.client import AsyncActivityCancelledError
from temporalio.service import RPCError, RPCStatusCode

from workflows.types import ShardProgress

BEAT_SECONDS: Final = 1.0
"""Seconds between two heartbeats of an activity."""
HEARTBEAT_THROTTLE: Final = timedelta(seconds=1.5)
"""Time between two heartbeats that the SDK sends to Temporal. Their answers report a cancellation or a pause."""

T = TypeVar("T")


class StoppedError(Exception):
    """The activity was cancelled while it was working."""


class StopFlag:
    """Stops work in a thread when its activity is cancelled."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """To be called in each step of a long loop.

        Raises:
            StoppedError: the activity was cancelled.
        """
        if self._event.is_set():
            raise StoppedError


async def run_in_thread(work: Callable[[StopFlag], T]) -> T:
    """Run blocking work in a thread, with heartbeats. If the activity is cancelled, wait until the work has stopped."""
    flag = StopFlag()
    task = asyncio.ensure_future(asyncio.to_thread(work, flag))
    try:
        return await _with_heartbeats(task)
    except asyncio.CancelledError:
        flag.set()
        await asyncio.wait({task})
        task.exception()  # StoppedError or an earlier error: the cancellation supersedes both
        raise


async def run_beside_heartbeats(work: Coroutine[Any, Any, T]) -> T:
    """Await work that may take longer than the heartbeat timeout, with heartbeats."""
    task = asyncio.create_task(work)
    try:
        return await _with_heartbeats(task)
    finally:
        task.cancel()


async def _with_heartbeats(task: asyncio.Future[T]) -> T:
    while True:
        done, _ = await asyncio.wait({task}, timeout=BEAT_SECONDS)
        if done:
            return task.result()
        activity.heartbeat()


def _longest_silence(timeout: timedelta | None) -> float:
    """Return the seconds between two beats from which Temporal may have timed out the activity.

    Temporal counts from the last heartbeat that it received, which may be older than the last beat: by the SDK's
    throttling, and by the network delay, for which this allows one second.
    """
    if timeout is None:
        return float("inf")
    limit = timeout.total_seconds()
    return max(BEAT_SECONDS + limit / 2, limit - HEARTBEAT_THROTTLE.total_seconds() - 1.0)


def last_progress() -> ShardProgress:
    """Return the last heartbeat of the earlier attempts, and count the previous attempt as lost if it did not end."""
    info = activity.info()
    if not info.heartbeat_details:
        return ShardProgress(losses=int(info.attempt > 1))
    with contextlib.suppress(ValidationError):
        said = ShardProgress.model_validate(info.heartbeat_details[0])
        return said if said.has_ended else said.model_copy(update={"losses": said.losses + 1})
    return ShardProgress()  # from another version of the worker


class ShardHeartbeat:
    """Beats from its creation to :meth:`stop`. Create it inside the activity, on its event loop."""

    def __init__(self, progress: Callable[[], ShardProgress], on_lapse: Callable[[], None]) -> None:
        """Args: ``on_lapse`` is called if the process was suspended for so long that it counts as lost."""
        self._progress = progress
        self._on_lapse = on_lapse
        self._loop = asyncio.get_running_loop()
        self._beat_at = self._loop.time()
        info = activity.info()
        self._longest_silence = _longest_silence(info.heartbeat_timeout)
        # The process may have been suspended after it received the task.
        self._began_late = (datetime.now(UTC) - info.started_time).total_seconds() > self._longest_silence
        self.lapsed = False
        self.has_ended = False
        # A shard that ends within the first second never needs a heartbeat.
        self._timer = self._loop.call_later(BEAT_SECONDS, self._tick, context=copy_context())

    def beat(self) -> None:
        activity.heartbeat(self._progress())

    def stop(self) -> None:
        self._timer.cancel()

    def end(self) -> None:
        """Stop, with a last heartbeat that stays visible while the activity waits for its next attempt."""
        self.stop()
        self.has_ended = True
        self.beat()

    def has_lapsed(self) -> bool:
        """Return whether the process was suspended for so long that its shards run elsewhere. Check this before each
        request: after a suspension, the interrupted step continues before any timer runs.
        """
        if self._loop.time() - self._beat_at > self._longest_silence:
            self.lapsed = True
            self._on_lapse()
        return self.lapsed

    async def is_forgotten(self) -> bool:
        """Return whether Temporal timed out this attempt before it began.

        Temporal is only asked if the clocks suggest it: they may differ, but asking costs time on both sides.
        """
        if self._began_late:
            handle = activity.client().get_async_activity_handle(task_token=activity.info().task_token)
            try:
                await handle.heartbeat(self._progress())
            except AsyncActivityCancelledError:
                pass  # the SDK learns of that too
            except RPCError as error:
                self.lapsed = error.status is RPCStatusCode.NOT_FOUND
        return self.lapsed

    def _tick(self) -> None:
        self.has_lapsed()
        self._beat_at = self._loop.time()
        self.beat()
        self._timer = self._loop.call_later(BEAT_SECONDS, self._tick)
