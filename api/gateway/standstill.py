"""Why a batch has no request in flight when neither the batch nor its upstream gives a reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from temporalio.client import Client

from activities.temporal.payload_codec import EncryptedPayloadError
from api.gateway.interface import Progress
from api.gateway.pending import Pending
from api.gateway.readiness import CannotWriteError, Readiness
from api.gateway.shared_looks import SharedLooks
from api.gateway.temporal_waits import CANNOT_WRITE, temporal_wait
from api.gateway.workflow_reader import UNANSWERED, batches_of
from workflows import contract
from workflows.types import BatchMemo, BatchPhase, BatchStatus
from workflows.waits import EndsBy, Wait, WaitKind

PATIENCE_SECONDS: Final = 2.0
"""A batch with nothing in flight counts as stalled only this long after its start: its first shards take a moment."""
SILENT_SECONDS: Final = 10.0
"""A running shard without a heartbeat for this long means that Temporal has not accepted its heartbeats."""
OTHERS_SECONDS: Final = 5.0
"""Time in seconds for which one list of all running batches is reused for all callers."""
MAX_OTHERS: Final = 1_000
LOOK_SECONDS: Final = 1.0

_UNREADABLE: Final = (*UNANSWERED, EncryptedPayloadError, KeyError)


class Standstill:
    def __init__(self, client: Client, task_queue: str, readiness: Readiness, address: str) -> None:
        """Args: ``address`` is that of Temporal, for messages."""
        self._client = client
        self._task_queue = task_queue
        self._readiness = readiness
        self._address = address
        self._others: SharedLooks[str, dict[str, int]] = SharedLooks(OTHERS_SECONDS, 1)

    async def wait(
        self, batch_id: str, status: BatchStatus, pending: Sequence[Pending], progress: Progress
    ) -> Wait | None:
        """Return what stalls the batch, or ``None`` if it is not stalled or no reason is found.

        Args: ``status``, ``pending`` and ``progress`` are the batch's, from one lookup.
        """
        now = time.time()
        if status.phase is not BatchPhase.IN_PROGRESS or status.in_progress_at is None:
            return None
        is_silent = any(item.heartbeat_at is not None and now - item.heartbeat_at > SILENT_SECONDS for item in pending)
        stands = not progress.in_flight and bool(pending) and now - status.in_progress_at >= PATIENCE_SECONDS
        if not (is_silent or stands):
            return None
        before = 0 if is_silent else await self._requests_of_others(batch_id)
        if before:
            reason = f"come first: {before:,} of their requests wait or are in flight"
            return Wait(kind=WaitKind.OTHER_BATCHES, subject="other batches", reason=reason)
        if await self._cannot_write():
            return temporal_wait(self._address, CANNOT_WRITE, EndsBy.OPERATOR)
        return None

    async def _requests_of_others(self, batch_id: str) -> int:
        """Return the number of unfinished requests of all other running batches.

        The numbers come from their memos, which each batch updates about ten times in its life.
        """
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                others = await self._others.get("all", self._look)
        except _UNREADABLE:
            return 0
        return sum(requests for other, requests in others.items() if other != batch_id)

    async def _look(self) -> dict[str, int]:
        query = (
            f"{batches_of(self._task_queue)} AND "
            f"ExecutionStatus = 'Running' AND {contract.STATUS_ATTRIBUTE.name} = '{BatchPhase.IN_PROGRESS.value}'"
        )
        requests: dict[str, int] = {}
        async for execution in self._client.list_workflows(query, limit=MAX_OTHERS):
            memo = await execution.memo_value(contract.MEMO_STATUS, None, type_hint=BatchMemo)
            if memo:
                counts = memo.counts
                requests[execution.id] = counts.total - counts.completed - counts.failed
        return requests

    async def _cannot_write(self) -> bool:
        try:
            await self._readiness.has_worker()
        except CannotWriteError:
            return True
        except _UNREADABLE:
            pass
        return False
