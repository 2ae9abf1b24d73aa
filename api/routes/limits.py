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
from workflows.ids import BatchRef
from workflows.types import BatchSpec

LOOK_SECONDS: Final = 10.0
"""Minimum time in seconds between two checks of whether a tenant's counted batches are still running."""
LOOK_AT: Final = 100


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
        """Count a batch that the block starts. It is no longer counted if the block raises an exception.

        Args:
            spec: the batch. It is not counted if it does not count towards limits.
            maximum: the maximum number of running batches of its tenant, or ``None`` for no limit.
            may_exist: whether the batch may exist already, and is then not counted again.

        Raises:
            TooManyBatchesError: the limit is reached, and the batch does not exist.
        """
        is_new = spec.counts_towards_limits
        if is_new and may_exist:
            is_new = await asyncio.to_thread(self._catalog.find_batch, spec.ref) is None
        if is_new:
            async with self._locks[spec.tenant]:
                is_new = await self._take(spec, maximum, may_exist)
        try:
            yield
        except Exception:
            # If the batch was started after all, its worker counts it again.
            if is_new:
                with contextlib.suppress(StoreError):
                    await asyncio.to_thread(self._running.remove, spec.ref)
            raise

    async def _take(self, spec: BatchSpec, maximum: int | None, may_exist: bool) -> bool:
        running = await asyncio.to_thread(self._running.batches, spec.tenant)
        if spec.ref in running:
            return False
        if maximum is not None and len(running) >= maximum:
            running = await self._without_ended(spec.tenant, running)
            if len(running) >= maximum:
                if may_exist and not await self._has_ended(spec.ref):
                    return False
                raise TooManyBatchesError(spec.tenant, maximum)
        await asyncio.to_thread(self._running.add, spec.ref)
        return True

    async def _without_ended(self, tenant: str, running: list[BatchRef]) -> list[BatchRef]:
        """Return ``running`` without batches found to have ended: a killed process may have left them counted."""
        now = time.monotonic()
        if now - self._looked_at.get(tenant, -LOOK_SECONDS) < LOOK_SECONDS:
            return running
        self._looked_at[tenant] = now
        # At random, since the first ones may all run for days.
        looked_at = random.sample(running, min(LOOK_AT, len(running)))
        ended = await asyncio.gather(*(self._has_ended(ref) for ref in looked_at))
        gone = {ref for ref, is_over in zip(looked_at, ended, strict=True) if is_over}
        for ref in gone:
            await asyncio.to_thread(self._running.remove, ref)
        return [ref for ref in running if ref not in gone]

    async def _has_ended(self, ref: BatchRef) -> bool:
        """Return whether the batch has ended or was never started; ``False`` if Temporal cannot tell."""
        try:
            view = await self._gateway.find(ref)
        except ObjectNotFoundError:
            return True
        except TemporalUnavailableError:
            return False
        return view.record.status.phase.is_terminal
