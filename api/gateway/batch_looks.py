"""The last known state of each batch, shared by all clients that ask for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from activities.store.object_store import StoreError
from api.gateway.interface import BatchView, Progress
from api.gateway.progress import HighWater
from api.gateway.shared_looks import Seen, SharedLooks
from workflows.ids import BatchRef
from workflows.types import BatchRecord

log = logging.getLogger("everbatch.api")

FRESH_SECONDS: Final = 0.25
"""Maximum age in seconds of a lookup that answers a request for one batch."""
LIST_SECONDS: Final = 0.15
"""Maximum time that a list waits for lookups. It then shows the last known states, and says how old they are."""
LIST_FRESH_SECONDS: Final = 2.0
"""Maximum age in seconds of a lookup that a list reuses, so that its cost does not grow with the number of callers."""
LIST_LOOKS: Final = 8
"""Maximum number of concurrent lookups for lists, so that long lists leave Temporal free for other requests."""
LOOKS_KEPT: Final = 1_000
"""Maximum number of results kept in memory, for single batches and for lists each."""

Look = Callable[[BatchRecord], Coroutine[Any, Any, BatchView]]


class BatchLooks:
    """Looks batches up: thoroughly for requests for one batch, and more cheaply for lists."""

    def __init__(self) -> None:
        self.shown = HighWater()
        self._thorough: SharedLooks[BatchRef, BatchView] = SharedLooks(FRESH_SECONDS, LOOKS_KEPT)
        self._listed: SharedLooks[BatchRef, BatchView] = SharedLooks(LIST_FRESH_SECONDS, LOOKS_KEPT)
        self._looking = asyncio.Semaphore(LIST_LOOKS)

    async def share(self, ref: BatchRef, look: Callable[[], Coroutine[Any, Any, BatchView]]) -> BatchView:
        """Return the result of a thorough lookup, which concurrent callers share."""
        return await self._thorough.get(ref, look)

    async def glances(self, records: Sequence[BatchRecord], look: Look) -> list[BatchView]:
        """See :meth:`api.gateway.interface.Gateway.glances`; ``look`` is the cheaper lookup."""
        looks = [asyncio.create_task(self._glance(record, look)) for record in records if self._is_due(record)]
        if looks:
            await asyncio.wait(looks, timeout=LIST_SECONDS)  # unfinished lookups serve the next caller
        return [self._last_seen(record) for record in records]

    def newest(self, record: BatchRecord) -> Seen[BatchView] | None:
        seen = (looks.last(record.spec.ref) for looks in (self._thorough, self._listed))
        return max(filter(None, seen), key=lambda one: one.began, default=None)

    def forget(self, record: BatchRecord) -> None:
        """Drop all results for a batch, so that a state from before a change is not shown after it."""
        self._thorough.forget(record.spec.ref)
        self._listed.forget(record.spec.ref)

    def _is_due(self, record: BatchRecord) -> bool:
        if record.status.phase.is_terminal:
            return False
        seen = self.newest(record)
        return seen is None or not self._listed.is_fresh(seen)

    async def _glance(self, record: BatchRecord, look: Look) -> None:
        async def in_turn() -> BatchView:
            async with self._looking:
                return await look(record)

        try:
            await self._listed.get(record.spec.ref, in_turn)
        except StoreError as error:
            log.warning("batch %s is listed with its last known state: %s", record.spec.batch_id, error)

    def _last_seen(self, record: BatchRecord) -> BatchView:
        """Return the batch as the newest lookup found it, but never behind what was shown before."""
        if record.status.phase.is_terminal:
            self.forget(record)  # a client that saw it ended in a list must not find it running
            return BatchView(record, None)
        seen = self.newest(record)
        view = seen.value if seen else BatchView(record, Progress())
        if view.progress is None:
            return view
        status = view.record.status
        return BatchView(self.shown.record(record.spec, status), view.progress)
