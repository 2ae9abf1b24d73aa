"""Long work of an activity, in a thread where it blocks, with heartbeats beside it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from temporalio import activity

T = TypeVar("T")

HEARTBEAT_SECONDS: Final = 1.0


class Stopped(Exception):
    """The activity was cancelled while its work was under way."""


class StopFlag:
    """Tells work in a thread that its activity was cancelled."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Call it at every step of a long loop.

        Raises:
            Stopped: the activity was cancelled.
        """
        if self._event.is_set():
            raise Stopped


async def run_in_thread(work: Callable[[StopFlag], T]) -> T:
    """Run blocking work off the event loop. When the activity is cancelled, the work has stopped before this ends."""
    flag = StopFlag()
    task = asyncio.ensure_future(asyncio.to_thread(work, flag))
    try:
        return await _with_heartbeats(task)
    except asyncio.CancelledError:
        flag.set()
        await asyncio.wait({task})
        task.exception()  # Stopped, or what came first; either way the cancel is the news
        raise


async def run_beside_heartbeats(work: Coroutine[Any, Any, T]) -> T:
    """Await something that may take longer than an activity may be silent."""
    task = asyncio.create_task(work)
    try:
        return await _with_heartbeats(task)
    finally:
        task.cancel()


async def _with_heartbeats(task: asyncio.Future[T]) -> T:
    while True:
        done, _ = await asyncio.wait({task}, timeout=HEARTBEAT_SECONDS)
        if done:
            return task.result()
        activity.heartbeat()
