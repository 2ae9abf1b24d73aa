"""The Files API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import string
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from activities.records.catalog import Catalog, FileRecord
from activities.records.keyed_files import KeyedFiles
from activities.records.keys import content_key
from activities.settings import Settings
from activities.store.object_store import ObjectNotFoundError, ObjectStore, StoreError
from api.http.auth import CallerOf, Tenant
from api.http.download import Download, Reader, Span, content_headers, entity_tag, is_known, span_of
from api.http.errors import ApiError, permanent_conflict, shown
from api.http.multipart import Upload, receive_upload
from api.http.schemas import (
    ExpiresAfter,
    FileDeleted,
    FileList,
    FileObject,
    IdempotencyKey,
    Purpose,
    UploadFields,
    error_responses,
    file_object,
    request_body,
)
from api.routes.partial_files import PartialFiles, PartialHeader
from api.routes.stored_bytes import Form, StoredBytes, form_of
from workflows.ids import create_digest, file_id_for_key

PURPOSES = get_args(Purpose)
MAX_PAGE = 10_000
BATCH_FILE_LIFETIME = 30 * 24 * 3600
_ID_CHARACTERS = string.ascii_letters + string.digits

Order = Literal["asc", "desc"]

_FORM = request_body(
    "multipart/form-data",
    ["file", "purpose"],
    {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
        "expires_after": {"type": "string", "description": "Both fields as one JSON object."},
    },
)
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": _BYTES},
    206: {"description": "The requested range.", "content": _BYTES},
    304: {"description": "The client already has this content."},
}


def files_router(settings: Settings, store: ObjectStore, stored: StoredBytes, partial: PartialFiles) -> APIRouter:
    routes = _Files(settings, store, stored, partial)
    router = APIRouter(prefix="/v1/files", tags=["Files"], responses=error_responses(401))
    found, created = error_responses(404, 503), error_responses(403, 409, 413, 429, 503)
    router.post("", responses=created, openapi_extra=_FORM)(routes.upload_file)
    router.get("", responses=error_responses(503))(routes.list_files)
    router.get("/{file_id}", responses=found)(routes.retrieve_file)
    router.delete("/{file_id}", responses=found)(routes.delete_file)
    content = _CONTENT | found | error_responses(416)
    router.get("/{file_id}/content", response_class=StreamingResponse, responses=content)(routes.file_content)
    router.head("/{file_id}/content", include_in_schema=False)(routes.file_content_head)
    return router


class _Files:
    def __init__(self, settings: Settings, store: ObjectStore, stored: StoredBytes, partial: PartialFiles) -> None:
        self._partial = partial
        self._max_bytes = settings.max_file_bytes
        self._stored = stored
        self._store = store
        self._catalog = Catalog(store)
        self._keyed_files = KeyedFiles(self._catalog)

    async def upload_file(
        self, request: Request, caller: CallerOf, idempotency_key: IdempotencyKey = None
    ) -> FileObject:
        tenant = caller.tenant
        file_id = file_id_for_key(tenant, idempotency_key) if idempotency_key else new_file_id()
        key = content_key(tenant, file_id)
        form = form_of(caller)
        is_repeat = bool(idempotency_key and await asyncio.to_thread(self._catalog.find_file, tenant, file_id))
        async with (
            self._stored.arriving(request, form, self._max_bytes, is_repeat=is_repeat),
            receive_upload(request, self._store, key, self._max_bytes, form.arrived) as upload,
        ):
            record = _record(file_id, upload)
            if idempotency_key:
                return file_object(await self._keyed(tenant, form, record, upload))
            async with self._stored.reserve(form, record.bytes):
                await publish_file(self._catalog, tenant, record, upload.commit)
        return file_object(record)

    async def _keyed(self, tenant: str, form: Form, record: FileRecord, upload: Upload) -> FileRecord:
        """Return the file of this upload's idempotency key, which is published unless it exists already.

        A file of the key that was deleted or has expired is made available again under its id.

        Raises:
            ApiError: the key belongs to a different upload.
        """
        before = await asyncio.to_thread(self._catalog.find_file, tenant, record.id)
        if before and not _is_expired(before):
            if before.digest != record.digest:
                raise _key_conflict()
            return before
        async with self._stored.reserve(form, record.bytes):
            if not await asyncio.to_thread(self._keyed_files.bind_key, tenant, record):
                raise _key_conflict()
            if before:
                await asyncio.to_thread(self._catalog.replace_file, tenant, before)
            await asyncio.to_thread(self._catalog.remind, "file", tenant, record.id, record.first_look)
            await upload.commit()
            return await asyncio.to_thread(self._keyed_files.save, tenant, record)

    async def list_files(
        self,
        tenant: Tenant,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
        order: Order = "desc",
        after: str | None = None,
    ) -> FileList:
        return await asyncio.to_thread(self._page, tenant, purpose, limit, order, after)

    async def retrieve_file(self, file_id: str, tenant: Tenant) -> FileObject:
        return file_object(await asyncio.to_thread(self._find, tenant, file_id))

    async def delete_file(self, file_id: str, tenant: Tenant) -> FileDeleted:
        await asyncio.to_thread(self._delete, tenant, file_id)
        return FileDeleted(id=file_id)

    async def file_content(
        self,
        file_id: str,
        tenant: Tenant,
        request: Request,
        offset: Annotated[int, Query(ge=0)] = 0,
        partial: PartialHeader = None,
    ) -> Response:
        """Send the content of a file.

        ``offset`` is a number of lines to skip. It applies only if ``Everbatch-Partial`` asks for partial files.
        """
        is_partial = self._partial.wanted(partial)
        if is_partial and (response := await self._partial.content(tenant, file_id, offset)):
            return response
        record = await asyncio.to_thread(self._find, tenant, file_id)
        if is_known(record, request.headers):
            return Response(status_code=304, headers={"ETag": entity_tag(record)})
        span = span_of(record, request.headers)
        reader = await asyncio.to_thread(self._open, tenant, file_id, span)
        response = Download(record, span, await asyncio.to_thread(reader.next), reader)
        if is_partial:
            response.headers["X-Incomplete"] = "false"
        return response

    async def file_content_head(self, file_id: str, tenant: Tenant) -> Response:
        record = await asyncio.to_thread(self._find, tenant, file_id)
        return Response(headers=content_headers(record, None), media_type="application/octet-stream")

    # The methods below block.

    def _find(self, tenant: str, file_id: str) -> FileRecord:
        record = self._catalog.find_file(tenant, file_id)
        if record is None or _is_expired(record):
            raise _no_file(file_id)
        return record

    def _delete(self, tenant: str, file_id: str) -> None:
        self._find(tenant, file_id)
        try:
            self._catalog.delete_file(tenant, file_id)
        except ObjectNotFoundError:
            raise _no_file(file_id) from None

    def _open(self, tenant: str, file_id: str, span: Span | None) -> Reader:
        try:
            start, length = span or (0, None)
            return Reader(self._store.stream(content_key(tenant, file_id), start, length))
        except ObjectNotFoundError:
            raise _no_file(file_id) from None

    def _page(self, tenant: str, purpose: str | None, limit: int, order: Order, after: str | None) -> FileList:
        try:
            # A file that has expired or was deleted still marks a position in the list.
            position = self._catalog.file_entry(tenant, after) if after is not None else None
        except ObjectNotFoundError:
            raise ApiError(400, f"No such File object: {shown(after)}", param="after") from None
        records = self._catalog.list_files(tenant, after=position, ascending=order == "asc", purpose=purpose)
        wanted = (record for record in records if not _is_expired(record))
        page = list(islice(wanted, limit + 1))
        return FileList.of([file_object(record) for record in page[:limit]], has_more=len(page) > limit)


async def publish_file(
    catalog: Catalog, tenant: str, record: FileRecord, commit: Callable[[], Awaitable[None]]
) -> None:
    """Publish a file: ``commit`` makes its content visible, and then its record is written.

    Raises:
        StoreError: the store failed. The file is removed again, as far as the store can be used.
    """
    await asyncio.to_thread(catalog.remind, "file", tenant, record.id, record.first_look)
    await commit()
    try:
        await asyncio.to_thread(catalog.save_file, tenant, record)
    except StoreError:
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(catalog.drop_file, tenant, record)
        raise


def new_file_id() -> str:
    return "file-" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(24))


def _no_file(file_id: str) -> ApiError:
    return ApiError(404, f"No such File object: {shown(file_id)}", param="id")


def _key_conflict() -> ApiError:
    message = (
        "Conflict: this idempotency key was already used for a different file. Use a new key for different content."
    )
    return permanent_conflict(message, code="idempotency_conflict")


def _is_expired(record: FileRecord) -> bool:
    return record.is_expired(time.time())


def _record(file_id: str, upload: Upload) -> FileRecord:
    fields = _fields(upload.fields)
    purpose, lifetime = fields.purpose, file_lifetime(fields.purpose, fields.expires_after)
    created_ms = time.time_ns() // 1_000_000
    return FileRecord(
        id=file_id,
        bytes=upload.size,
        created_ms=created_ms,
        filename=upload.filename,
        purpose=purpose,
        expires_at=created_ms // 1000 + lifetime if lifetime else None,
        lines=upload.lines,
        sha256=upload.sha256,
        digest=create_digest(
            {"sha256": upload.sha256, "filename": upload.filename, "purpose": purpose, "lifetime": lifetime}
        ),
    )


def file_lifetime(purpose: str, expires_after: ExpiresAfter | None) -> int | None:
    """Return the seconds from a file's creation to its expiry, or ``None`` if it does not expire."""
    if expires_after:
        return expires_after.seconds
    return BATCH_FILE_LIFETIME if purpose == "batch" else None


def _fields(texts: dict[str, str]) -> UploadFields:
    """Read a form, with ``expires_after[anchor]`` and ``expires_after[seconds]``, or both in JSON as ``expires_after``.

    Raises:
        ApiError, RequestValidationError: a field is missing or invalid.
    """
    policy: dict[str, Any] = {}
    for name in ("anchor", "seconds"):
        text = texts.get(f"expires_after[{name}]")
        if text is not None:
            is_number = name == "seconds" and text.isascii() and text.isdigit() and len(text) < 20
            policy[name] = int(text) if is_number else text
    fields: dict[str, Any] = {"purpose": texts["purpose"]} if "purpose" in texts else {}
    if policy and "expires_after" in texts:
        message = "Send 'expires_after' either as JSON or as bracketed fields, not both."
        raise ApiError(400, message, param="expires_after")
    if policy:
        fields["expires_after"] = policy
    elif "expires_after" in texts:
        try:
            fields["expires_after"] = json.loads(texts["expires_after"])
        except (ValueError, RecursionError):
            raise ApiError(400, "Invalid 'expires_after': not valid JSON.", param="expires_after") from None
    try:
        return UploadFields.model_validate(fields)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(errors) from None
