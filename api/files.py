"""The Files API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import string
import time
from itertools import islice
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from activities.catalog import Catalog, FileRecord, content_key
from activities.settings import Settings
from activities.storage import ObjectNotFound, ObjectStore, StoreError
from api.auth import Limits, Tenant
from api.download import Download, Reader
from api.errors import ApiError, invalid_value, missing_parameter, permanent_conflict, shown, validation_error
from api.limits import StoredBytes
from api.multipart import Upload, receive_upload
from api.schemas import (
    ExpiresAfter,
    FileDeleted,
    FileList,
    FileObject,
    IdempotencyKey,
    Purpose,
    error_responses,
    file_list,
    file_object,
)
from workflows.ids import create_digest, file_id_for_key

PURPOSES = get_args(Purpose)
MAX_PAGE = 10_000
_BATCH_FILE_LIFETIME = 30 * 24 * 3600
_ID_CHARACTERS = string.ascii_letters + string.digits

Order = Literal["asc", "desc"]

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                        "expires_after": {"type": "string", "description": "Both at once, as a JSON object."},
                    },
                }
            }
        },
    }
}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


def files_router(settings: Settings, store: ObjectStore, stored: StoredBytes) -> APIRouter:
    routes = _Files(settings, store, stored)
    router = APIRouter(prefix="/v1/files", tags=["Files"], responses=error_responses(401))
    found, created = error_responses(404, 503), error_responses(409, 413, 429, 503)
    # The body is read by the route as it arrives, so FastAPI cannot know of it.
    router.add_api_route(
        "", routes.upload_file, methods=["POST"], response_model=FileObject, responses=created, openapi_extra=_FORM
    )
    router.add_api_route(
        "", routes.list_files, methods=["GET"], response_model=FileList, responses=error_responses(503)
    )
    router.add_api_route(
        "/{file_id}", routes.retrieve_file, methods=["GET"], response_model=FileObject, responses=found
    )
    router.add_api_route(
        "/{file_id}", routes.delete_file, methods=["DELETE"], response_model=FileDeleted, responses=found
    )
    router.add_api_route(
        "/{file_id}/content",
        routes.file_content,
        methods=["GET"],
        response_class=StreamingResponse,
        responses=_CONTENT | found,
    )
    return router


class _Files:
    def __init__(self, settings: Settings, store: ObjectStore, stored: StoredBytes) -> None:
        self._max_bytes = settings.max_file_bytes
        self._stored = stored
        self._store = store
        self._catalog = Catalog(store)

    async def upload_file(
        self, request: Request, tenant: Tenant, limits: Limits, idempotency_key: IdempotencyKey = None
    ) -> FileObject:
        file_id = file_id_for_key(tenant, idempotency_key) if idempotency_key else _new_file_id()
        key = content_key(tenant, file_id)
        if not idempotency_key or not await asyncio.to_thread(self._catalog.find_file, tenant, file_id):
            await self._stored.check_announced(request, tenant, limits, self._max_bytes)
        async with receive_upload(request, self._store, key, self._max_bytes) as upload:
            record = _record(file_id, upload)
            before = await asyncio.to_thread(self._catalog.find_file, tenant, file_id) if idempotency_key else None
            if before and not _is_expired(before):
                if before.digest != record.digest:
                    message = "Conflict: this idempotency key was used for another file."
                    raise permanent_conflict(message, code="idempotency_conflict")
                return file_object(before)
            async with self._stored.room(tenant, limits, record.bytes):
                await asyncio.to_thread(self._catalog.remind, "file", tenant, file_id, record.first_look)
                await upload.commit()
                await self._publish(tenant, record, before, has_key=idempotency_key is not None)
        return file_object(record)

    async def _publish(self, tenant: str, record: FileRecord, before: FileRecord | None, *, has_key: bool) -> None:
        try:
            await asyncio.to_thread(self._catalog.save_file, tenant, record, before)
            if has_key and not await asyncio.to_thread(self._catalog.is_whole, tenant, record.id):
                raise StoreError("the file that expired under this idempotency key is being deleted")
        except StoreError:
            with contextlib.suppress(StoreError):
                await asyncio.to_thread(self._catalog.drop_file, tenant, record)
            raise

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

    async def file_content(self, file_id: str, tenant: Tenant) -> Response:
        record, reader = await asyncio.to_thread(self._open, tenant, file_id)
        return Download(record, await asyncio.to_thread(reader.next), reader)

    # These block.

    def _find(self, tenant: str, file_id: str) -> FileRecord:
        record = self._catalog.find_file(tenant, file_id)
        if record is None or _is_expired(record):
            raise _no_file(file_id)
        return record

    def _delete(self, tenant: str, file_id: str) -> None:
        self._find(tenant, file_id)
        try:
            self._catalog.delete_file(tenant, file_id)
        except ObjectNotFound:
            raise _no_file(file_id) from None

    def _open(self, tenant: str, file_id: str) -> tuple[FileRecord, Reader]:
        record = self._find(tenant, file_id)
        try:
            return record, Reader(self._store.stream(content_key(tenant, file_id)))
        except ObjectNotFound:
            raise _no_file(file_id) from None

    def _page(self, tenant: str, purpose: str | None, limit: int, order: Order, after: str | None) -> FileList:
        try:
            # An expired file still marks a place in the list.
            position = self._catalog.get_file(tenant, after) if after is not None else None
        except ObjectNotFound:
            raise ApiError(400, f"No such File object: {shown(after)}", param="after") from None
        records = self._catalog.list_files(tenant, after=position, ascending=order == "asc")
        wanted = (
            record for record in records if (purpose is None or record.purpose == purpose) and not _is_expired(record)
        )
        page = list(islice(wanted, limit + 1))
        return file_list(page[:limit], has_more=len(page) > limit)


def _new_file_id() -> str:
    return "file-" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(24))


def _no_file(file_id: str) -> ApiError:
    return ApiError(404, f"No such File object: {shown(file_id)}", param="id")


def _is_expired(record: FileRecord) -> bool:
    return record.is_expired(time.time())


def _record(file_id: str, upload: Upload) -> FileRecord:
    """The record of an upload, where its fields allow it."""
    purpose = upload.fields.get("purpose")
    if purpose is None:
        raise missing_parameter("purpose")
    if purpose not in PURPOSES:
        raise invalid_value("purpose", purpose, PURPOSES)
    lifetime = file_lifetime(purpose, _expires_after(upload.fields))
    created_ms = time.time_ns() // 1_000_000
    return FileRecord(
        id=file_id,
        bytes=upload.size,
        created_ms=created_ms,
        filename=upload.filename,
        purpose=purpose,
        expires_at=created_ms // 1000 + lifetime if lifetime else None,
        lines=upload.lines,
        digest=create_digest(
            {"sha256": upload.sha256, "filename": upload.filename, "purpose": purpose, "lifetime": lifetime}
        ),
    )


def file_lifetime(purpose: str, expires_after: ExpiresAfter | None) -> int | None:
    """Seconds from a file's creation to its end; ``None`` for one that stays."""
    if expires_after:
        return expires_after.seconds
    return _BATCH_FILE_LIFETIME if purpose == "batch" else None


def _expires_after(fields: dict[str, str]) -> ExpiresAfter | None:
    """From ``expires_after[anchor]`` and ``[seconds]`` or from one field of JSON."""
    policy: Any = {}
    for name in ("anchor", "seconds"):
        text = fields.get(f"expires_after[{name}]")
        if text is not None:
            is_number = name == "seconds" and text.isascii() and text.isdigit() and len(text) < 20
            policy[name] = int(text) if is_number else text
    if "expires_after" in fields:
        if policy:
            raise ApiError(400, "Give 'expires_after' either as JSON or in brackets.", param="expires_after")
        try:
            policy = json.loads(fields["expires_after"])
        except (ValueError, RecursionError):
            raise ApiError(400, "Invalid 'expires_after': not valid JSON.", param="expires_after") from None
    elif not policy:
        return None
    try:
        return ExpiresAfter.model_validate(policy)
    except ValidationError as error:
        raise validation_error(error.errors(), prefix="expires_after") from None
