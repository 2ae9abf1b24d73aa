"""The Uploads API: files that arrive in parts, in parallel and in any order."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Sequence

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request

from activities.records.catalog import FileRecord
from activities.records.keys import upload_part_key
from activities.records.uploads import ArrivedPart, UploadRecord, UploadRecords, UploadState
from activities.settings import Settings
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from api.http.auth import CallerOf, Tenant
from api.http.bodies import JsonRoute
from api.http.errors import ApiError, shown
from api.http.multipart import receive_upload, refuse_upload
from api.http.schemas import (
    CompleteUpload,
    CreateUpload,
    Upload,
    UploadPart,
    error_responses,
    request_body,
    upload_object,
)
from api.routes.files import file_lifetime
from api.routes.stored_bytes import StoredBytes, form_of
from workflows.ids import file_id_for_upload

MAX_PART_BYTES = 67_108_864
"""Maximum size of a part: the size of the parts that OpenAI's clients send (64 MiB)."""
MAX_PARTS = 10_000
"""Maximum number of parts of an upload: S3 joins no more."""
_COMPLETING = 2
"""Maximum number of uploads completed at once: each occupies a thread while the store copies its bytes."""
_MD5 = re.compile(r"[0-9a-fA-F]{32}")

_FORM = request_body("multipart/form-data", ["data"], {"data": {"type": "string", "format": "binary"}})


def uploads_router(settings: Settings, store: ObjectStore, stored: StoredBytes) -> APIRouter:
    routes = _Uploads(settings, store, stored)
    router = APIRouter(prefix="/v1/uploads", tags=["Uploads"], route_class=JsonRoute, responses=error_responses(401))
    created, found = error_responses(403, 429, 503), error_responses(404, 503)
    part = error_responses(403, 404, 413, 429, 503)
    router.post("", responses=created)(routes.create_upload)
    router.post("/{upload_id}/parts", responses=part, openapi_extra=_FORM)(routes.add_part)
    router.post("/{upload_id}/complete", responses=found)(routes.complete_upload)
    router.post("/{upload_id}/cancel", responses=found)(routes.cancel_upload)
    return router


class _Uploads:
    def __init__(self, settings: Settings, store: ObjectStore, stored: StoredBytes) -> None:
        self._max_bytes = settings.max_upload_bytes
        self._stored = stored
        self._store = store
        self._uploads = UploadRecords(store)
        self._completing = asyncio.Semaphore(_COMPLETING)

    async def create_upload(self, body: CreateUpload, caller: CallerOf) -> Upload:
        if body.bytes > self._max_bytes:
            limit = {"type": "less_than_equal", "ctx": {"le": self._max_bytes}}
            raise RequestValidationError([{**limit, "loc": ("body", "bytes"), "input": body.bytes}])
        record = UploadRecord(
            id=f"upload_{secrets.token_hex(16)}",
            bytes=body.bytes,
            created_ms=time.time_ns() // 1_000_000,
            filename=body.filename,
            mime_type=body.mime_type,
            purpose=body.purpose,
            lifetime=file_lifetime(body.purpose, body.expires_after),
        )
        async with self._stored.reserve(form_of(caller), body.bytes):
            return upload_object(await asyncio.to_thread(self._uploads.create, caller.tenant, record))

    async def add_part(self, upload_id: str, request: Request, caller: CallerOf) -> UploadPart:
        tenant = caller.tenant
        try:
            await asyncio.to_thread(self._check_part, tenant, upload_id, 0)
        except ApiError:
            await refuse_upload(request, MAX_PART_BYTES)
            raise
        part_id = f"part_{secrets.token_hex(16)}"
        key = upload_part_key(tenant, upload_id, part_id)
        form = form_of(caller, upload_id)
        async with (
            self._stored.arriving(request, form, MAX_PART_BYTES),
            receive_upload(request, self._store, key, MAX_PART_BYTES, form.arrived, field="data") as data,
        ):
            part = ArrivedPart(part_id, data.size, data.newlines, data.is_open)
            async with self._stored.reserve(form, part.bytes):
                # Checked again: the upload may have ended, or other parts may have filled it, while this part arrived.
                await asyncio.to_thread(self._check_part, tenant, upload_id, part.bytes)
                await data.commit()
                await asyncio.to_thread(self._uploads.add_part, tenant, upload_id, part)
        return UploadPart(id=part_id, created_at=int(time.time()), upload_id=upload_id)

    async def complete_upload(self, upload_id: str, body: CompleteUpload, tenant: Tenant) -> Upload:
        # The bytes of the file are already counted as those of its parts, so nothing is reserved.
        async with self._completing:
            # The thread finishes even if the client disconnects, and a repeated request finds its result.
            return upload_object(await asyncio.to_thread(self._complete, tenant, upload_id, body))

    async def cancel_upload(self, upload_id: str, tenant: Tenant) -> Upload:
        return upload_object(await asyncio.to_thread(self._cancel, tenant, upload_id))

    # The methods below block.

    def _find(self, tenant: str, upload_id: str) -> UploadState:
        try:
            return self._uploads.get(tenant, upload_id)
        except ObjectNotFoundError:
            raise _no_upload(upload_id) from None

    def _check_part(self, tenant: str, upload_id: str, size: int) -> None:
        upload = self._find(tenant, upload_id)
        if upload.status != "pending":
            raise _wrong_state("add a part to", upload)
        parts = self._uploads.parts(tenant, upload_id)
        if len(parts) >= MAX_PARTS:
            raise ApiError(400, f"An upload may have no more than {MAX_PARTS} parts.", param="data")
        # Twice the size, since a client that did not get a response sends the part again.
        maximum = 2 * upload.record.bytes + MAX_PART_BYTES
        if sum(part.bytes for part in parts.values()) + size > maximum:
            text = f"The parts of this upload hold more than {maximum} bytes already, but it is to be a file of"
            raise ApiError(400, f"{text} {upload.record.bytes} bytes.", param="data")

    def _complete(self, tenant: str, upload_id: str, body: CompleteUpload) -> UploadState:
        if body.md5 is not None and not _MD5.fullmatch(body.md5):
            raise ApiError(400, "Invalid 'md5': expected 32 hexadecimal digits.", code="invalid_value", param="md5")
        file_id = file_id_for_upload(upload_id, body.part_ids)
        upload = self._find(tenant, upload_id)
        if upload.status != "pending":
            return self._completed(tenant, upload, file_id)
        try:
            parts = _chosen(upload.record, self._uploads.parts(tenant, upload_id), body.part_ids)
            if body.md5 is not None and body.md5.lower() != (md5 := self._uploads.md5(tenant, upload_id, parts)):
                text = f"The md5 of the parts is {md5}, but {body.md5} was expected."
                raise ApiError(400, text, param="md5")
            upload = self._uploads.complete(tenant, upload_id, _file_record(file_id, upload.record, parts), parts)
        except (ApiError, ObjectNotFoundError):
            # Another request may have ended the upload meanwhile, and deleted the parts.
            upload = self._find(tenant, upload_id)
            if upload.status == "pending":
                raise
        return self._completed(tenant, upload, file_id)

    def _completed(self, tenant: str, upload: UploadState, file_id: str) -> UploadState:
        """Publish the file of a completed upload if it is ``file_id``, and return the upload. Repeating it is harmless.

        Raises:
            ApiError: the upload is not completed, or became a different file.
        """
        if not upload.file:
            raise _wrong_state("complete", upload)
        if upload.file.id != file_id:
            raise ApiError(400, "This upload was completed with other parts, or in another order.", param="part_ids")
        return self._uploads.publish(tenant, upload)

    def _cancel(self, tenant: str, upload_id: str) -> UploadState:
        try:
            upload = self._uploads.cancel(tenant, upload_id)
        except ObjectNotFoundError:
            raise _no_upload(upload_id) from None
        if upload.status == "completed":
            raise _wrong_state("cancel", upload)
        return upload


def _chosen(record: UploadRecord, parts: dict[str, ArrivedPart], part_ids: Sequence[str]) -> list[ArrivedPart]:
    """Return the parts that a client named, in its order.

    Raises:
        ApiError: a part is unknown or named twice, or the parts do not add up to the announced size.
    """
    seen: set[str] = set()
    for part_id in part_ids:
        if part_id in seen:
            raise ApiError(400, f"Invalid 'part_ids': '{shown(part_id)}' occurs more than once.", param="part_ids")
        if part_id not in parts:
            raise ApiError(400, f"No such Part object: {shown(part_id)}", param="part_ids")
        seen.add(part_id)
    chosen = [parts[part_id] for part_id in part_ids]
    size = sum(part.bytes for part in chosen)
    if size != record.bytes:
        text = f"The parts hold {size} bytes, but the upload was created for {record.bytes} bytes."
        raise ApiError(400, text, param="part_ids")
    return chosen


def _file_record(file_id: str, upload: UploadRecord, parts: Sequence[ArrivedPart]) -> FileRecord:
    created_ms = time.time_ns() // 1_000_000
    ends = [part for part in parts if part.bytes]
    return FileRecord(
        id=file_id,
        bytes=upload.bytes,
        created_ms=created_ms,
        filename=upload.filename,
        purpose=upload.purpose,
        expires_at=created_ms // 1000 + upload.lifetime if upload.lifetime else None,
        lines=sum(part.newlines for part in parts) + (bool(ends) and ends[-1].is_open),
    )


def _no_upload(upload_id: str) -> ApiError:
    return ApiError(404, f"No such Upload object: {shown(upload_id)}", param="id")


def _wrong_state(what: str, upload: UploadState) -> ApiError:
    # Not 409: OpenAI's clients would retry it.
    return ApiError(400, f"Cannot {what} an upload with status '{upload.status}'.")
