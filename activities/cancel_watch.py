"""Tells running shards that their batch is cancelled, sooner than the SDK's heartbeats do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from temporalio.client import AsyncActivityCancelledError, Client
from temporalio.service import RPCError

from workflows.types import ShardProgress

ASK_SECONDS: Final = 0.4
"""Between two questions about one run …"""
EACH_SECONDS: Final = 0.05
"""… and so long for each run, so that many make no load: of 30 and more, the SDK's heartbeats tell sooner."""
CALL_LIMIT: Final = timedelta(seconds=2)


@dataclass(eq=False)
class _Shard:
    task_token: bytes
    progress: Callable[[], ShardProgress]
    on_cancel: Callable[[], None]
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class CancelWatch:
    """Of one worker process, on its event loop.

    Word of a cancel comes with the answer to a heartbeat, of which the SDK sends one in 1.5 s: for so long an engine
    would go on generating for nobody. So Temporal is asked here about one shard of each run, by a heartbeat beside the
    SDK's, and all shards of a run that is cancelled are told.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._runs: dict[str, list[_Shard]] = {}
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
            async with shard.asking:  # a heartbeat that is on its way must not overwrite the shard's last one
                pass

    def tell(self, run_id: str) -> None:
        """The run is cancelled."""
        for shard in list(self._runs.get(run_id, ())):
            shard.on_cancel()

    async def _watch(self) -> None:
        while self._runs:
            await asyncio.sleep(max(ASK_SECONDS, EACH_SECONDS * len(self._runs)))
            await asyncio.gather(*(self._look(run_id) for run_id in self._runs))

    async def _look(self, run_id: str) -> None:
        if shards := self._runs.get(run_id):
            shard = shards.pop(0)
            shards.append(shard)  # another one next time, should this one be lost
            if await self._is_cancelled(shard):
                self.tell(run_id)

    async def _is_cancelled(self, shard: _Shard) -> bool:
        async with shard.asking:
            handle = self._client.get_async_activity_handle(task_token=shard.task_token)
            try:
                await handle.heartbeat(shard.progress(), rpc_timeout=CALL_LIMIT)
            except AsyncActivityCancelledError as error:
                return error.details is not None and error.details.cancel_requested
            except RPCError:
                pass  # what that means is for the SDK's own heartbeats to find out
        return False
