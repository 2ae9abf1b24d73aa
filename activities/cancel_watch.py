"""Notifies running shards of the cancellation of their batch, sooner than the SDK's heartbeats would."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from temporalio.client import AsyncActivityCancelledError, Client
from temporalio.service import RPCError

from workflows.types import ShardProgress

log = logging.getLogger("everbatch")

CHECK_SECONDS: Final = 0.4
"""Minimum seconds between two checks of one run."""
EACH_SECONDS: Final = 0.05
"""Seconds per run between two checks, to bound the load. From 30 runs on, the SDK's heartbeats are sooner."""
CALL_LIMIT: Final = timedelta(seconds=2)


@dataclass(eq=False)
class _Shard:
    task_token: bytes
    progress: Callable[[], ShardProgress]
    on_cancel: Callable[[], None]
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)


class CancelWatch:
    """Watches the runs of one worker process, on its event loop.

    An activity learns of a cancellation from the answer to a heartbeat. The SDK sends one every 1.5 s, and until then
    an engine would generate for nobody. So this class sends additional heartbeats, for one shard of each run, and
    notifies all shards of a cancelled run.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._runs: dict[str, list[_Shard]] = {}
        self._cancelled: set[str] = set()
        self._watching: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watched(
        self, run_id: str, task_token: bytes, progress: Callable[[], ShardProgress], on_cancel: Callable[[], None]
    ) -> AsyncGenerator[None]:
        """Watch a shard while it runs.

        Args: ``run_id`` is the run of its workflow; ``on_cancel`` is called, perhaps repeatedly, if that is cancelled.
        """
        shard = _Shard(task_token, progress, on_cancel)
        self._runs.setdefault(run_id, []).append(shard)
        if run_id in self._cancelled:  # learned while this shard was still reading its requests
            on_cancel()
        if self._watching is None or self._watching.done():
            # It needs a context of its own instead of the activity's.
            self._watching = asyncio.get_running_loop().create_task(self._watch(), context=Context())
        try:
            yield
        finally:
            self._runs[run_id].remove(shard)
            if not self._runs[run_id]:
                del self._runs[run_id]
                self._cancelled.discard(run_id)
            async with shard.checking:  # a heartbeat that is still on its way must not overwrite the shard's last one
                pass

    def notify(self, run_id: str) -> None:
        """Notify all shards of a run that it is cancelled."""
        if run_id in self._runs:
            self._cancelled.add(run_id)
        for shard in list(self._runs.get(run_id, ())):
            shard.on_cancel()

    async def _watch(self) -> None:
        while self._runs:
            await asyncio.sleep(max(CHECK_SECONDS, EACH_SECONDS * len(self._runs)))
            results = await asyncio.gather(*(self._check(run_id) for run_id in self._runs), return_exceptions=True)
            for error in results:
                if error:  # the SDK's own heartbeats still report a cancellation, only later
                    log.warning("cannot check in Temporal whether a batch is cancelled: %r", error)

    async def _check(self, run_id: str) -> None:
        if shards := self._runs.get(run_id):
            shard = shards.pop(0)
            shards.append(shard)  # check another one next time, in case this one is lost
            if await self._is_cancelled(shard):
                self.notify(run_id)

    async def _is_cancelled(self, shard: _Shard) -> bool:
        async with shard.checking:
            handle = self._client.get_async_activity_handle(task_token=shard.task_token)
            try:
                async with asyncio.timeout(CALL_LIMIT.total_seconds()):  # the call's own limit is that of one attempt
                    await handle.heartbeat(shard.progress(), rpc_timeout=CALL_LIMIT)
            except AsyncActivityCancelledError as error:
                return error.details is not None and error.details.cancel_requested
            except (RPCError, TimeoutError):
                pass  # the SDK's own heartbeats handle errors
        return False
