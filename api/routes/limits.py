"""Limits of tenants, checked before something is created."""

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
"""Between two looks whether all of a tenant's batches that count as running do run."""
LOOK_AT: Final = 100
"""Batches in one look."""


class TooManyBatchesError(ApiError):
    """The tenant has reached its maximum number of running batches."""

    def __init__(self, tenant: str, maximum: int) -> None:
        message = (
            f"Rate limit reached for batches in organization {tenant}. Limit: {maximum} running batches, and so many "
            "run. Waiting helps: please try again once some have ended."
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
        """Reserve room for a batch that is started within; released if that raises.

        Args:
            spec: the batch. One that is not counted needs none.
            maximum: running batches that its tenant may have.
            may_exist: whether the batch may be there already, and then needs no more room.

        Raises:
            TooManyBatchesError: there is none, and no such batch.
        """
        is_new = spec.counts_towards_limits and not (may_exist and await self._is_recorded(spec))
        if is_new:
            async with self._locks[spec.tenant]:
                is_new = await self._take(spec, maximum, may_exist)
        try:
            yield
        except Exception:
            # Should it have been started after all, its worker counts it again.
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
        """Those that do run: of some, nobody may have been there to say that they ended."""
        now = time.monotonic()
        if now - self._looked_at.get(tenant, -LOOK_SECONDS) < LOOK_SECONDS:
            return ids
        self._looked_at[tenant] = now
        looked_at = random.sample(ids, min(LOOK_AT, len(ids)))  # the first ones may all run for days
        ended = await asyncio.gather(*(self._has_ended(tenant, batch_id) for batch_id in looked_at))
        gone = {batch_id for batch_id, is_over in zip(looked_at, ended, strict=True) if is_over}
        for batch_id in gone:
            await asyncio.to_thread(self._running.remove, tenant, batch_id)
        return [batch_id for batch_id in ids if batch_id not in gone]

    async def _has_ended(self, tenant: str, batch_id: str) -> bool:
        """Whether the batch runs no more, or has never been started."""
        try:
            view = await self._gateway.find(tenant, batch_id)
        except ObjectNotFoundError:
            return True
        except TemporalUnavailableError:
            return False
        return view.record.status.phase.is_terminal
