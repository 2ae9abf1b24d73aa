"""Limits how many activities of one tenant run in a worker, so that its large inputs do not block other tenants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from activities.heartbeats import run_beside_heartbeats

AT_ONCE_PER_TENANT: Final = 2
"""Inputs validated, and result files written, at once by one worker for one tenant."""


class PerTenant:
    """Turns of activities, first come, first served within a tenant. Lives on the worker's event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: dict[str, list[asyncio.Event]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str) -> AsyncGenerator[None]:
        """Wait, with heartbeats, until fewer than so many of the tenant are under way."""
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
