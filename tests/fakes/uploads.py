"""Steps of a client of the Uploads API, and what they leave in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activities.records.keys import upload_prefix
from activities.records.uploads import UploadRecord
from tests.fakes.api import Api, chunked, error_of, form, open_api

TENANT = "default"
MAX_UPLOAD_BYTES = 1_000_000


def another(it: Api) -> Api:
    """Another API process over the same store."""
    return open_api(it.folder, max_upload_bytes=MAX_UPLOAD_BYTES)


async def post(it: Api, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    response = await it.http.post(f"/v1/uploads{path}", json=body)
    return response.status_code, response.json() if response.status_code == 200 else error_of(response)


async def create(it: Api, size: int, **changes: Any) -> str:
    """The id of a new upload."""
    body = {"bytes": size, "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch", **changes}
    status, answer = await post(it, "", body)
    assert status == 200, answer
    return answer["id"]


def data(content: bytes, name: str = "data") -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"; filename="upload"', content


async def post_part(it: Api, upload_id: str, content: bytes) -> tuple[int, dict[str, Any]]:
    body, headers = form(data(content))
    response = await it.http.post(f"/v1/uploads/{upload_id}/parts", content=chunked(body), headers=headers)
    return response.status_code, response.json() if response.status_code == 200 else error_of(response)


async def part(it: Api, upload_id: str, content: bytes) -> str:
    """The id of a new part."""
    status, answer = await post_part(it, upload_id, content)
    assert status == 200, answer
    return answer["id"]


async def upload(it: Api, *contents: bytes) -> tuple[str, list[str]]:
    """An upload with these parts, pending."""
    upload_id = await create(it, sum(map(len, contents)))
    return upload_id, [await part(it, upload_id, content) for content in contents]


async def complete(it: Api, upload_id: str, part_ids: Sequence[Any], **more: Any) -> tuple[int, dict[str, Any]]:
    return await post(it, f"/{upload_id}/complete", {"part_ids": part_ids, **more})


async def content_of(it: Api, answer: dict[str, Any]) -> bytes:
    return (await it.http.get(f"/v1/files/{answer['file']['id']}/content")).content


def kept(it: Api) -> list[str]:
    """What is stored but reminders for the janitor."""
    return [name for name in it.stored() if not name.startswith("due/")]


def parts_stored(it: Api) -> list[str]:
    return [name for name in kept(it) if "/parts/" in name or "/arrived/" in name or name.startswith(".tmp")]


def make_older(it: Api, upload_id: str, seconds: int) -> None:
    """Let time pass for an upload."""
    key = f"{upload_prefix(TENANT, upload_id)}created.json"
    record = UploadRecord.model_validate_json(it.store.get(key))
    older = record.model_copy(update={"created_ms": record.created_ms - seconds * 1000})
    it.store.put(key, older.model_dump_json().encode())
