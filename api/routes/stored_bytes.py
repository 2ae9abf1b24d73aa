"""The bytes that a tenant may store: those of its files, and what is under way to become some."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import Request

from activities.records.catalog import Catalog, FileRecord
from activities.records.object_index import IndexEntry
from activities.records.running import RunningBatches
from activities.records.uploads import HeldBytes, UploadRecords
from api.http.errors import ApiError
from api.http.multipart import FORM_ALLOWANCE, refuse_upload
from api.tenants.keys import TenantLimits

ANSWERS_SECONDS: Final = 10.0
"""For so long the answers of running batches count as they were last seen."""


@dataclass(eq=False)
class Form:
    """A form, or an upload that is created: what it takes of its tenant's room."""

    tenant: str
    maximum: int | None
    """Bytes that the tenant may store."""
    upload_id: str = ""
    """Of the upload that it brings a part of."""
    bytes: int = 0
    free: int | None = None
    """What was left for one whose length is not known before its end."""

    def arrived(self, size: int) -> None:
        """Called with its size so far.

        Raises:
            ApiError: it is larger than announced, and than what was left.
        """
        if self.free is not None and self.maximum is not None and size > max(self.bytes, self.free):
            raise _too_much_stored(self.tenant, self.maximum, self.maximum - self.free, 0, size)
        self.bytes = max(self.bytes, size)


@dataclass
class _Usage:
    files: int
    uploads: dict[str, HeldBytes]
    answers: int

    def reserved(self, forms: Iterable[Form]) -> int:
        """Bytes that are under way. Parts of a pending upload count as far as they go beyond what it announced."""
        coming: Counter[str] = Counter()
        for form in forms:
            coming[form.upload_id] += form.bytes
        files = coming.pop("", 0)
        in_uploads = sum(
            max(held.announced, held.arrived + coming[upload_id])
            for upload_id, held in {**dict.fromkeys(coming, HeldBytes(0, 0)), **self.uploads}.items()
        )
        return files + in_uploads + self.answers


@dataclass
class _Tenant:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    forms: set[Form] = field(default_factory=set[Form])
    records: dict[IndexEntry, FileRecord] = field(default_factory=dict[IndexEntry, FileRecord])
    answers: tuple[float, int] = (float("-inf"), 0)
    """When they were looked at, and their bytes."""


class StoredBytes:
    """Keeps what each tenant has stored and has under way within the bytes that it may store.

    Under way are uploads, by what they announced; forms that are arriving, in this process; and the answers of running
    batches. Records do not change, so each is read once in a process, and from then on a look costs listings.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._uploads = UploadRecords(catalog.store)
        self._running = RunningBatches(catalog)
        self._tenants: defaultdict[str, _Tenant] = defaultdict(_Tenant)

    @contextlib.asynccontextmanager
    async def arriving(
        self, request: Request, form: Form, max_bytes: int, *, is_repeat: bool = False
    ) -> AsyncGenerator[None]:
        """Room for the file in a form of at most ``max_bytes`` that has not been read yet, while it arrives.

        Args:
            request: it says how large the form is, or not.
            form: where it is counted.
            max_bytes: of the file.
            is_repeat: whether its file may be there already, and then needs no other room.

        Raises:
            ApiError: there is none.
        """
        if form.maximum is None or is_repeat:
            yield
            return
        tenant = self._tenants[form.tenant]
        length = request.headers.get("content-length", "")
        announced = max(int(length) - FORM_ALLOWANCE, 0) if length.isdecimal() else 0
        try:
            async with tenant.lock:
                left = await self._take(form, announced)
                form.free = None if length.isdecimal() else left
        except ApiError:
            await refuse_upload(request, max_bytes)
            raise
        try:
            yield
        finally:
            tenant.forms.discard(form)

    @contextlib.asynccontextmanager
    async def room(self, form: Form, size: int) -> AsyncGenerator[None]:
        """Room for a file that is published within, a part that has arrived, or an upload that is created.

        Raises:
            ApiError: there is none.
        """
        if form.maximum is None:
            yield
            return
        tenant = self._tenants[form.tenant]
        async with tenant.lock:
            try:
                await self._take(form, size)
                yield
            finally:
                tenant.forms.discard(form)  # it counts where it is stored now, or nowhere

    async def _take(self, form: Form, size: int) -> int:
        """Count the form as this large; what is left then."""
        assert form.maximum is not None, "who has no limit is not counted"
        tenant = self._tenants[form.tenant]
        usage = await asyncio.to_thread(self._usage, form.tenant, tenant)
        before = usage.reserved(tenant.forms - {form})
        form.bytes = size
        tenant.forms.add(form)
        after = usage.reserved(tenant.forms)
        if after > before and usage.files + after > form.maximum:
            tenant.forms.discard(form)
            raise _too_much_stored(form.tenant, form.maximum, usage.files, before, size)
        return form.maximum - usage.files - after

    def _usage(self, name: str, tenant: _Tenant) -> _Usage:
        records: dict[IndexEntry, FileRecord] = {}
        for entry in self._catalog.file_entries(name):
            record = tenant.records.get(entry) or self._catalog.find_file(name, entry.id)
            if record and record.index_entry == entry:
                records[entry] = record
        tenant.records = records
        if time.monotonic() - tenant.answers[0] >= ANSWERS_SECONDS:
            tenant.answers = time.monotonic(), self._running.answers_bytes(name)
        now = time.time()
        # Nobody can see or delete what has expired; the janitor will.
        in_files = sum(record.bytes for record in records.values() if not record.is_expired(now))
        return _Usage(in_files, self._uploads.held(name), tenant.answers[1])


def form_of(tenant: str, limits: TenantLimits | None, upload_id: str = "") -> Form:
    return Form(tenant, limits.max_stored_bytes if limits else None, upload_id)


def _too_much_stored(tenant: str, maximum: int, stored: int, reserved: int, size: int) -> ApiError:
    status, held = 429, f"and has {stored}"
    if reserved:
        held += f", and {reserved} more are reserved by its uploads and running batches"
    if size > maximum:
        status, advice = 403, f"A file of {size} bytes can never be stored: waiting does not help."
    elif stored + size > maximum:
        advice = f"{size} more do not fit. Waiting does not help: please delete files that you no longer need."
    else:
        advice = f"{size} more do not fit now. Please try again once some of these have ended or are cancelled."
    message = f"You exceeded your current quota: organization {tenant} may store {maximum} bytes {held}. {advice}"
    headers = {"x-should-retry": "false"}
    return ApiError(status, message, type="insufficient_quota", code="insufficient_quota", headers=headers)
