"""What a tenant may use, asked before it uses it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Final

from starlette.requests import Request

from activities.catalog import Catalog, FileRecord
from activities.running_batches import RunningBatches
from activities.storage import ObjectNotFound, StoreError
from activities.upload_records import UploadRecords
from api.errors import ApiError
from api.keys import TenantLimits
from api.multipart import FORM_ALLOWANCE, refuse_upload
from api.views import Gateway, TemporalUnavailable
from workflows.types import BatchSpec

LOOK_SECONDS: Final = 10.0
"""Between two looks whether all of a tenant's batches that count as running do run."""
LOOK_AT: Final = 100
"""Batches in one look."""


class NoPlace(ApiError):
    """The tenant has as many running batches as it may have."""

    def __init__(self, tenant: str, most: int) -> None:
        message = (
            f"Rate limit reached for batches in organization {tenant}. Limit: {most} running batches. "
            "Please try again once some have ended."
        )
        super().__init__(429, message, type="requests", code="rate_limit_exceeded", headers={"Retry-After": "15"})


class BatchPlaces:
    """Keeps the running batches of each tenant at most as many as it may have."""

    def __init__(self, catalog: Catalog, gateway: Gateway) -> None:
        self._catalog = catalog
        self._gateway = gateway
        self._running = RunningBatches(catalog)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._looked_at: dict[str, float] = {}

    @contextlib.asynccontextmanager
    async def place(self, spec: BatchSpec, most: int | None, *, may_exist: bool) -> AsyncGenerator[None]:
        """A place for a batch that is started within; free again if that raises.

        Args:
            spec: the batch. One that is not counted needs no place.
            most: running batches that its tenant may have.
            may_exist: whether the batch may be there already, and then needs no other place.

        Raises:
            NoPlace: there is none, and no such batch.
        """
        is_new = spec.counted and not (may_exist and await self._is_recorded(spec))
        if is_new:
            async with self._locks[spec.tenant]:
                is_new = await self._take(spec, most, may_exist)
        try:
            yield
        except Exception:
            # Should it have been started after all, its worker counts it again.
            if is_new:
                with contextlib.suppress(StoreError):
                    await asyncio.to_thread(self._running.remove, spec.tenant, spec.batch_id)
            raise

    async def _take(self, spec: BatchSpec, most: int | None, may_exist: bool) -> bool:
        ids = await asyncio.to_thread(self._running.ids, spec.tenant)
        if spec.batch_id in ids:
            return False
        if most is not None and len(ids) >= most:
            ids = await self._without_ended(spec.tenant, ids)
            if len(ids) >= most:
                if may_exist and not await self._has_ended(spec.tenant, spec.batch_id):
                    return False
                raise NoPlace(spec.tenant, most)
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
        except ObjectNotFound:
            return True
        except TemporalUnavailable:
            return False
        return view.record.status.phase.is_terminal


class StoredBytes:
    """Keeps the files of each tenant within the bytes that it may store.

    Records do not change, so each is read once in a process, and from then on a look costs two listings. Parts of
    uploads count as they arrive, so that no number of unfinished ones is a way round.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._uploads = UploadRecords(catalog.store)
        self._records: dict[str, dict[tuple[str, int], FileRecord]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def check(self, tenant: str, limits: TenantLimits | None, size: int) -> None:
        """Whether a file of this many bytes would fit.

        Raises:
            ApiError: it would not.
        """
        most = limits.max_stored_bytes if limits else None
        if most is None:
            return
        stored = await asyncio.to_thread(self._stored, tenant)
        if stored + size > most:
            raise _too_much_stored(tenant, most, stored)

    async def check_announced(self, request: Request, tenant: str, limits: TenantLimits | None, max_bytes: int) -> None:
        """As :meth:`check`, for the file in a form of at most ``max_bytes`` that has not been read yet."""
        length = request.headers.get("content-length", "")
        announced = int(length) - FORM_ALLOWANCE if length.isdecimal() else 0
        try:
            await self.check(tenant, limits, max(announced, 0))
        except ApiError:
            await refuse_upload(request, max_bytes)
            raise

    @contextlib.asynccontextmanager
    async def room(self, tenant: str, limits: TenantLimits | None, size: int) -> AsyncGenerator[None]:
        """Room for a file that is published within, or a part that arrives: no two take the same.

        Raises:
            ApiError: there is none.
        """
        if size == 0 or limits is None or limits.max_stored_bytes is None:
            yield
            return
        async with self._locks[tenant]:
            await self.check(tenant, limits, size)
            yield

    def _stored(self, tenant: str) -> int:
        known = self._records.get(tenant, {})
        records: dict[tuple[str, int], FileRecord] = {}
        for place in self._catalog.file_places(tenant):
            record = known.get(place) or self._catalog.find_file(tenant, place[0])
            if record and record.created_ms == place[1]:
                records[place] = record
        self._records[tenant] = records
        now = time.time()
        # Nobody can see or delete what has expired; the janitor will.
        in_files = sum(record.bytes for record in records.values() if not record.is_expired(now))
        return in_files + self._uploads.arrived_bytes(tenant)


def _too_much_stored(tenant: str, most: int, stored: int) -> ApiError:
    message = (
        f"You exceeded your current quota: organization {tenant} may store {most} bytes and has {stored}. "
        "Please delete files that you no longer need."
    )
    headers = {"x-should-retry": "false"}
    return ApiError(429, message, type="insufficient_quota", code="insufficient_quota", headers=headers)
