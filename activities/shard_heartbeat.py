"""The heartbeats of a shard: what it tells while it runs, and what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from typing import Final

from temporalio import activity
from temporalio.client import AsyncActivityCancelledError
from temporalio.service import RPCError

from workflows.types import ShardProgress

BEAT_SECONDS: Final = 1.0
"""Between two heartbeats. The SDK sends fewer; with each comes word of a cancel."""


class ShardHeartbeat:
    """Beats from its start to :meth:`stop`; made inside the activity, on its event loop."""

    def __init__(self, progress: Callable[[], ShardProgress], on_lapse: Callable[[], None]) -> None:
        """Args: ``on_lapse`` is called when the process was suspended for so long that it counts as dead."""
        self._progress = progress
        self._on_lapse = on_lapse
        self._loop = asyncio.get_running_loop()
        self._beat_at = self._loop.time()
        self.lapsed = False
        # A shard that ends within the first second never needs a heartbeat.
        self._timer = self._loop.call_later(BEAT_SECONDS, self._tick, context=copy_context())

    def beat(self) -> None:
        activity.heartbeat(self._progress())

    def stop(self) -> None:
        self._timer.cancel()

    async def hears_cancel(self) -> bool:
        """Ask Temporal whether the shard is cancelled.

        For after a pause: the SDK's core tells an activity of one cancellation only, and the pause was it.
        """
        handle = activity.client().get_async_activity_handle(task_token=activity.info().task_token)
        try:
            await handle.heartbeat(self._progress())
        except AsyncActivityCancelledError as error:
            return error.details is not None and error.details.cancel_requested
        except RPCError:
            return False
        return False

    def _tick(self) -> None:
        # A process that was suspended for long is thought dead, and its shards run elsewhere: what they have not sent
        # yet is not theirs to send any more. This runs before any answer that came meanwhile makes room for more.
        silence, self._beat_at = self._loop.time() - self._beat_at, self._loop.time()
        limit = activity.info().heartbeat_timeout
        if limit and silence > BEAT_SECONDS + limit.total_seconds() / 2:
            self.lapsed = True
            self._on_lapse()
        self.beat()
        self._timer = self._loop.call_later(BEAT_SECONDS, self._tick)
