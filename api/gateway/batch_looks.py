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
from workflows.types import BatchRecord

log = logging.getLogger("everbatch.api")

FRESH_SECONDS: Final = 0.25
"""For so long one look at a batch answers all who ask for it."""
LIST_SECONDS: Final = 0.15
"""A list waits no longer for looks, and says how old is what it says."""
LIST_FRESH_SECONDS: Final = 2.0
"""A list takes looks up to this age, so that its cost does not grow with how often it is asked for."""
LIST_LOOKS: Final = 8
"""Looks for lists under way at once, so that long lists leave Temporal to others."""
LOOKS_KEPT: Final = 1_000
"""In memory, of each kind."""

Key = tuple[str, str]
"""Tenant and batch."""
Look = Callable[[BatchRecord], Coroutine[Any, Any, BatchView]]


class BatchLooks:
    """Looks at batches: thorough ones for those who ask for one batch, and cheaper ones for lists."""

    def __init__(self) -> None:
        self.shown = HighWater()
        self._thorough: SharedLooks[Key, BatchView] = SharedLooks(FRESH_SECONDS, LOOKS_KEPT)
        self._listed: SharedLooks[Key, BatchView] = SharedLooks(LIST_FRESH_SECONDS, LOOKS_KEPT)
        self._looking = asyncio.Semaphore(LIST_LOOKS)

    async def share(self, key: Key, look: Callable[[], Coroutine[Any, Any, BatchView]]) -> BatchView:
        """A thorough look, shared by all who ask at about the same time."""
        return await self._thorough.get(key, look)

    async def glances(self, records: Sequence[BatchRecord], look: Look) -> list[BatchView]:
        """See :meth:`api.gateway.interface.Gateway.glances`; ``look`` is the cheaper one."""
        looks = [asyncio.create_task(self._glance(record, look)) for record in records if self._is_due(record)]
        if looks:
            await asyncio.wait(looks, timeout=LIST_SECONDS)  # the others go on for the next caller
        return [self._last_seen(record) for record in records]

    def newest(self, record: BatchRecord) -> Seen[BatchView] | None:
        seen = (looks.last(_key(record)) for looks in (self._thorough, self._listed))
        return max(filter(None, seen), key=lambda one: one.began, default=None)

    def forget(self, record: BatchRecord) -> None:
        """What was seen before a change is not shown after it."""
        self._thorough.forget(_key(record))
        self._listed.forget(_key(record))

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
            await self._listed.get(_key(record), in_turn)
        except StoreError as error:
            log.warning("batch %s is listed with its last known state: %s", record.spec.batch_id, error)

    def _last_seen(self, record: BatchRecord) -> BatchView:
        """The batch as the newest look showed it, without taking back what was shown."""
        if record.status.phase.is_terminal:
            self.forget(record)  # who has seen it ended in a list must not find it running
            return BatchView(record, None)
        seen = self.newest(record)
        view = seen.value if seen else BatchView(record, Progress())
        if view.progress is None:
            return view
        status = view.record.status
        return BatchView(self.shown.record(record.spec, status), view.progress)


def _key(record: BatchRecord) -> Key:
    return record.spec.tenant, record.spec.batch_id
