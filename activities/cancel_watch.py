"""Tells running shards that their batch is cancelled, sooner than the SDK's heartbeats do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from typing import Final, NamedTuple

from temporalio.client import AsyncActivityCancelledError, Client
from temporalio.service import RPCError

from workflows.types import ShardProgress

ASK_SECONDS: Final = 0.4
"""Between two questions about one run."""
GAP_SECONDS: Final = 0.05
"""Between any two questions, so that many runs make no load: of 30 and more, the SDK's heartbeats tell sooner."""


class _Shard(NamedTuple):
    task_token: bytes
    progress: Callable[[], ShardProgress]
    on_cancel: Callable[[], None]


class CancelWatch:
    """Of one worker process, on its event loop.

    Word of a cancel comes with the answer to a heartbeat, of which the SDK sends one in 1.5 s: for so long an engine
    would go on generating for nobody. So Temporal is asked here about one shard of each run after the other, by a
    heartbeat beside the SDK's, and all shards of that run are told.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._runs: dict[str, list[_Shard]] = {}
        self._asked: _Shard | None = None
        self._asking = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watched(
        self, run_id: str, task_token: bytes, progress: Callable[[], ShardProgress], on_cancel: Callable[[], None]
    ) -> AsyncGenerator[None]:
        """Around the running of a shard.

        Args: ``run_id`` is its workflow's; ``on_cancel`` is called, perhaps more than once, when that is cancelled.
        """
        shard = _Shard(task_token, progress, on_cancel)
        self._runs.setdefault(run_id, []).append(shard)
        if self._watching is None or self._watching.done():
            # In a context of its own, not the activity's.
            self._watching = asyncio.get_running_loop().create_task(self._watch(), context=Context())
        try:
            yield
        finally:
            self._runs[run_id].remove(shard)
            if not self._runs[run_id]:
                del self._runs[run_id]
            if self._asked is shard:  # else what is on its way might overwrite its last word
                async with self._asking:
                    pass

    def tell(self, run_id: str) -> None:
        """The run is cancelled."""
        for shard in list(self._runs.get(run_id, ())):
            shard.on_cancel()

    async def _watch(self) -> None:
        while self._runs:
            await asyncio.sleep(max(ASK_SECONDS / len(self._runs), GAP_SECONDS))
            if self._runs:
                run_id = next(iter(self._runs))
                shards = self._runs[run_id] = self._runs.pop(run_id)  # to the end of the line
                shards.append(shards.pop(0))
                if await self._is_cancelled(shards[-1]):
                    self.tell(run_id)

    async def _is_cancelled(self, shard: _Shard) -> bool:
        async with self._asking:
            self._asked = shard
            try:
                await self._client.get_async_activity_handle(task_token=shard.task_token).heartbeat(shard.progress())
            except AsyncActivityCancelledError as error:
                return error.details is not None and error.details.cancel_requested
            except RPCError:
                return False  # the SDK hears of that too
            finally:
                self._asked = None
        return False
