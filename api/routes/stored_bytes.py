"""The limit of the bytes that a tenant may store, in files and in what is about to become files."""

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
from api.http.auth import Caller
from api.http.errors import ApiError
from api.http.multipart import FORM_ALLOWANCE, refuse_upload

ANSWERS_SECONDS: Final = 10.0
"""Time in seconds for which the last known size of running batches' responses is reused."""


@dataclass(eq=False)
class Form:
    """The bytes that an arriving form, or an upload that is being created, reserves of its tenant's limit."""

    tenant: str
    maximum: int | None
    """Maximum number of bytes that the tenant may store; ``None`` for no limit."""
    upload_id: str = ""
    """Id of the upload that the form brings a part of; empty if it brings a file."""
    bytes: int = 0
    free: int | None = None
    """Bytes that were left of the limit, if the length of the form is not known in advance."""

    def arrived(self, size: int) -> None:
        """Record the bytes that have arrived so far.

        Raises:
            ApiError: ``size`` exceeds what was announced and what was left of the limit.
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
        """Return the reserved bytes. Parts of a pending upload count only where they exceed what it announced."""
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
    """Monotonic time at which the responses of running batches were last measured, and their bytes."""


class StoredBytes:
    """Keeps the stored and reserved bytes of each tenant within its limit.

    Bytes are reserved for uploads, by their announced size; for forms that are arriving in this process; and for the
    responses of running batches. Records do not change, so a process reads each only once; after that, a check only
    costs listings.
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
        """Reserve bytes for the file in a form while the block reads the form.

        ``Content-Length`` announces the size of the form, if the request has it. Nothing is reserved if the file may
        exist already (``is_repeat``).

        Raises:
            ApiError: the tenant would exceed its limit. The body has then been read, within bounds.
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
    async def reserve(self, form: Form, size: int) -> AsyncGenerator[None]:
        """Reserve ``size`` bytes while the block publishes a file, stores a part or creates an upload.

        Raises:
            ApiError: the tenant would exceed its limit.
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
                tenant.forms.discard(form)  # from now on its bytes count as stored, or not at all

    async def _take(self, form: Form, size: int) -> int:
        """Reserve ``size`` bytes for the form, and return the bytes that are left of the limit.

        Raises:
            ApiError: the tenant would exceed its limit.
        """
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
        # Expired files do not count: no client can see or delete them, and the janitor deletes them.
        in_files = sum(record.bytes for record in records.values() if not record.is_expired(now))
        return _Usage(in_files, self._uploads.held(name), tenant.answers[1])


def form_of(caller: Caller, upload_id: str = "") -> Form:
    return Form(caller.tenant, caller.limits.max_stored_bytes if caller.limits else None, upload_id)


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
