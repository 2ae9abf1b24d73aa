"""Limits how many activities of one tenant run in a worker, so that its large inputs do not block other tenants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from activities.heartbeats import run_beside_heartbeats

AT_ONCE_PER_TENANT: Final = 2
"""Maximum number of inputs that a worker validates, and of batches whose files it writes, at once for one tenant."""


class PerTenant:
    """Gives activities their turns, in order of arrival for each tenant. Use it on one event loop only."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: dict[str, list[asyncio.Event]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str) -> AsyncGenerator[None]:
        """Wait, sending heartbeats, until fewer than ``at_once`` activities of the tenant are running."""
        turns = self._waiting.setdefault(tenant, [])
        mine = asyncio.Event()
        turns.append(mine)
        self._call(turns)
        try:
            await run_beside_heartbeats(mine.wait())
            yield
        finally:
            turns.remove(mine)
            self._call(turns)
            if not turns:
                del self._waiting[tenant]

    def _call(self, turns: list[asyncio.Event]) -> None:
        for event in turns[: self._at_once]:
            event.set()
