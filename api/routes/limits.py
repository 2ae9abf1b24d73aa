"""The limit of a tenant's running batches, checked before a batch is created."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Final

from activities.records.catalog import Catalog
from activities.records.running import RunningBatches
from activities.store.object_store import ObjectNotFoundError, StoreError
from api.gateway.interface import Gateway, TemporalUnavailableError
from api.http.errors import ApiError
from workflows.types import BatchSpec

LOOK_SECONDS: Final = 10.0
"""Minimum time in seconds between two checks of whether a tenant's counted batches are still running."""
LOOK_AT: Final = 100
"""Maximum number of batches in one such check."""


class TooManyBatchesError(ApiError):
    """The tenant has reached its maximum number of running batches."""

    def __init__(self, tenant: str, maximum: int) -> None:
        message = (
            f"Rate limit reached for batches in organization {tenant}. Limit: {maximum} running batches, all of which "
            "are in use. Waiting helps: please try again once some have ended."
        )
        super().__init__(429, message, type="requests", code="rate_limit_exceeded", headers={"Retry-After": "15"})


class BatchLimit:
    """Limits the running batches of each tenant."""

    def __init__(self, catalog: Catalog, gateway: Gateway) -> None:
        self._catalog = catalog
        self._gateway = gateway
        self._running = RunningBatches(catalog)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._looked_at: dict[str, float] = {}

    @contextlib.asynccontextmanager
    async def reserve(self, spec: BatchSpec, maximum: int | None, *, may_exist: bool) -> AsyncGenerator[None]:
        """Reserve room for a batch that the block starts. The room is released if the block raises an exception.

        Args:
            spec: the batch. Nothing is reserved if it does not count towards limits.
            maximum: the maximum number of running batches of its tenant, or ``None`` for no limit.
            may_exist: whether the batch may exist already, in which case it needs no room.

        Raises:
            TooManyBatchesError: there is no room, and the batch does not exist.
        """
        is_new = spec.counts_towards_limits and not (may_exist and await self._is_recorded(spec))
        if is_new:
            async with self._locks[spec.tenant]:
                is_new = await self._take(spec, maximum, may_exist)
        try:
            yield
        except Exception:
            # If the batch was started after all, its worker counts it again.
            if is_new:
                with contextlib.suppress(StoreError):
                    await asyncio.to_thread(self._running.remove, spec.tenant, spec.batch_id)
            raise

    async def _take(self, spec: BatchSpec, maximum: int | None, may_exist: bool) -> bool:
        ids = await asyncio.to_thread(self._running.ids, spec.tenant)
        if spec.batch_id in ids:
            return False
        if maximum is not None and len(ids) >= maximum:
            ids = await self._without_ended(spec.tenant, ids)
            if len(ids) >= maximum:
                if may_exist and not await self._has_ended(spec.tenant, spec.batch_id):
                    return False
                raise TooManyBatchesError(spec.tenant, maximum)
        await asyncio.to_thread(self._running.add, spec.tenant, spec.batch_id)
        return True

    async def _is_recorded(self, spec: BatchSpec) -> bool:
        return await asyncio.to_thread(self._catalog.find_batch, spec.tenant, spec.batch_id) is not None

    async def _without_ended(self, tenant: str, ids: list[str]) -> list[str]:
        """Return ``ids`` without batches found to have ended: a killed process may have left them counted."""
        now = time.monotonic()
        if now - self._looked_at.get(tenant, -LOOK_SECONDS) < LOOK_SECONDS:
            return ids
        self._looked_at[tenant] = now
        looked_at = random.sample(ids, min(LOOK_AT, len(ids)))  # at random, since the first ones may all run for days
        ended = await asyncio.gather(*(self._has_ended(tenant, batch_id) for batch_id in looked_at))
        gone = {batch_id for batch_id, is_over in zip(looked_at, ended, strict=True) if is_over}
        for batch_id in gone:
            await asyncio.to_thread(self._running.remove, tenant, batch_id)
        return [batch_id for batch_id in ids if batch_id not in gone]

    async def _has_ended(self, tenant: str, batch_id: str) -> bool:
        """Return whether the batch has ended or was never started; ``False`` if Temporal cannot tell."""
        try:
            view = await self._gateway.find(tenant, batch_id)
        except ObjectNotFoundError:
            return True
        except TemporalUnavailableError:
            return False
        return view.record.status.phase.is_terminal
