"""Uploads whose completion is cut off, or meets another request, and what is left of them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from activities.records.catalog import Catalog
from activities.records.keys import arrived_prefix, content_key, upload_prefix
from activities.records.uploads import GRACE_SECONDS, UPLOAD_SECONDS, UploadRecords
from activities.store.object_store import StoreError
from tests.fakes.api import Api, error_of, form, open_api
from tests.fakes.uploads import (
    MAX_UPLOAD_BYTES,
    TENANT,
    another,
    complete,
    content_of,
    create,
    data,
    kept,
    parts_stored,
    post,
    upload,
)
from tests.fakes.worker import until


@pytest.fixture
def it(tmp_path: Path) -> Api:
    return open_api(tmp_path, max_upload_bytes=MAX_UPLOAD_BYTES)


# Crashes and races


@pytest.mark.parametrize("failing", ["content", "ended.json", "/files/", "object.json", "arrived"])
async def test_a_completion_that_failed_is_brought_to_its_end_by_a_repeat(
    it: Api, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    upload_id, parts = await upload(it, b"abc", b"def")
    real_put_new = it.store.put_new
    real_put, real_compose, real_delete = it.store.put, it.store.compose, it.store.delete_prefix

    def fail_at(key: str) -> None:
        if failing in key:
            raise StoreError("disk full")

    def put(key: str, data: bytes) -> None:
        fail_at(key)
        real_put(key, data)

    def put_new(key: str, data: bytes) -> bytes:
        fail_at(key)
        return real_put_new(key, data)

    def compose(sources: Sequence[str], target: str) -> None:
        fail_at(target)
        real_compose(sources, target)

    def delete_prefix(prefix: str) -> None:
        fail_at(prefix)
        real_delete(prefix)

    with monkeypatch.context() as patch:
        patch.setattr(it.store, "put", put)
        patch.setattr(it.store, "put_new", put_new)
        patch.setattr(it.store, "compose", compose)
        patch.setattr(it.store, "delete_prefix", delete_prefix)
        status, error = await complete(it, upload_id, parts)
        assert (status, error["type"]) == (503, "server_error")
    status, answer = await complete(another(it), upload_id, parts)
    assert (status, await content_of(it, answer)) == (200, b"abcdef")
    assert [each.id async for each in it.openai.files.list()] == [answer["file"]["id"]]
    assert parts_stored(it) == []


def while_composing(it: Api, monkeypatch: pytest.MonkeyPatch, step: Callable[[], Any], before: bool) -> None:
    """Let something happen in another process before, or after, this one makes a file of parts."""
    compose = it.store.compose
    loop = asyncio.get_running_loop()

    def spied(sources: Sequence[str], target: str) -> None:
        if before:
            asyncio.run_coroutine_threadsafe(step(), loop).result(20)
        compose(sources, target)
        if not before:
            asyncio.run_coroutine_threadsafe(step(), loop).result(20)

    monkeypatch.setattr(it.store, "compose", spied)


@pytest.mark.parametrize("before", [True, False])
async def test_a_cancel_while_the_file_is_made_wins(it: Api, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    upload_id, parts = await upload(it, b"abc", b"def")
    other = another(it)
    while_composing(it, monkeypatch, lambda: post(other, f"/{upload_id}/cancel"), before)
    status, error = await complete(it, upload_id, parts)
    assert (status, error["message"]) == (400, "Cannot complete an upload with status 'cancelled'.")
    assert [each.id async for each in it.openai.files.list()] == []
    assert (await post(it, f"/{upload_id}/cancel"))[1]["status"] == "cancelled"
    assert parts_stored(it) == []


@pytest.mark.parametrize("before", [True, False])
async def test_of_two_orders_the_first_wins(it: Api, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    upload_id, parts = await upload(it, b"abc", b"def")
    other = another(it)
    while_composing(it, monkeypatch, lambda: complete(other, upload_id, parts[::-1]), before)
    status, error = await complete(it, upload_id, parts)
    assert (status, error["param"]) == (400, "part_ids")
    files = [each.id async for each in it.openai.files.list()]
    assert len(files) == 1
    assert (await it.openai.files.content(files[0])).content == b"defabc"


async def test_a_completion_overtakes_a_cancel_that_comes_too_late(it: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id, parts = await upload(it, b"abc")
    other = another(it)
    put_new = it.store.put_new
    loop = asyncio.get_running_loop()

    def spied(key: str, data: bytes) -> bytes:
        if data == b"null":
            asyncio.run_coroutine_threadsafe(complete(other, upload_id, parts), loop).result(20)
        return put_new(key, data)

    monkeypatch.setattr(it.store, "put_new", spied)
    status, error = await post(it, f"/{upload_id}/cancel")
    assert (status, error["message"]) == (400, "Cannot cancel an upload with status 'completed'.")
    assert (await complete(it, upload_id, parts))[0] == 200


async def test_a_client_that_leaves_while_the_file_is_made_finds_it_made(
    it: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, parts = await upload(it, b"abc", b"def")
    compose = it.store.compose
    composing, released = threading.Event(), threading.Event()

    def held(sources: Sequence[str], target: str) -> None:
        composing.set()
        assert released.wait(20)
        compose(sources, target)

    monkeypatch.setattr(it.store, "compose", held)
    request = asyncio.create_task(complete(it, upload_id, parts))
    await until(composing.is_set)
    # The event loop is free meanwhile.
    assert [each.id async for each in it.openai.files.list()] == []
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    released.set()
    completed = it.folder / upload_prefix(TENANT, upload_id) / "ended.json"
    await until(completed.exists)
    status, answer = await complete(another(it), upload_id, parts)
    assert (status, await content_of(it, answer)) == (200, b"abcdef")
    await until(lambda: parts_stored(it) == [])


async def test_a_part_that_arrives_after_the_end_is_refused(it: Api) -> None:
    upload_id = await create(it, 3)
    body, headers = form(data(b"abc"))

    async def slow() -> AsyncIterator[bytes]:
        yield body[:-20]
        await post(it, f"/{upload_id}/cancel")
        yield body[-20:]

    response = await it.http.post(f"/v1/uploads/{upload_id}/parts", content=slow(), headers=headers)
    assert response.status_code == 400
    assert error_of(response)["message"] == "Cannot add a part to an upload with status 'cancelled'."
    assert parts_stored(it) == []


# What stays


def aged(it: Api, seconds: float) -> UploadRecords:
    """The records as they are seen in a while."""
    return UploadRecords(it.store, lambda: time.time() + seconds)


async def test_the_janitor_is_reminded_and_deletes_what_is_over(it: Api) -> None:
    pending, _ = await upload(it, b"abc")
    completed, parts = await upload(it, b"abc")
    _, answer = await complete(it, completed, parts)
    cancelled, _ = await upload(it, b"abc")
    await post(it, f"/{cancelled}/cancel")
    uploads = [pending, completed, cancelled]
    end = int(time.time()) + UPLOAD_SECONDS + GRACE_SECONDS
    reminders = [one for one in Catalog(it.store).due(end + 60) if one.kind == "upload"]
    assert sorted(one.object_id for one in reminders) == sorted(uploads)
    assert all(end - 60 <= one.at <= end for one in reminders)
    it.store.put(f"{upload_prefix(TENANT, cancelled)}parts/part_1", b"late")
    for upload_id in uploads:
        aged(it, UPLOAD_SECONDS).delete_upload_leftovers(TENANT, upload_id)
    assert len(parts_stored(it)) == 2  # a completion of the first may be under way still
    assert (await complete(it, completed, parts))[0] == 200
    for _ in range(2):
        for upload_id in uploads:
            aged(it, UPLOAD_SECONDS + GRACE_SECONDS).delete_upload_leftovers(TENANT, upload_id)
    assert [name for name in kept(it) if name.startswith("uploads/")] == []
    assert await content_of(it, answer) == b"abc"
    assert (await complete(it, completed, parts))[0] == 404


async def test_content_of_a_completion_that_never_ended_has_a_reminder(
    it: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, parts = await upload(it, b"abc")
    reminded: list[bool] = []
    compose = it.store.compose

    def spied(sources: Sequence[str], target: str) -> None:
        file_id = target.split("/")[2]
        reminded.append(any(one.object_id == file_id for one in Catalog(it.store).due(2**40)))
        assert target == content_key(TENANT, file_id)
        compose(sources, target)

    monkeypatch.setattr(it.store, "compose", spied)
    assert (await complete(it, upload_id, parts))[0] == 200
    assert reminded == [True]


async def test_records_hold_no_content_and_say_how_a_part_ends(it: Api) -> None:
    upload_id, parts = await upload(it, b"a\nb", b"c\n")
    names = [key.removeprefix(arrived_prefix(TENANT, upload_id)) for key in it.store.list(f"uploads/{TENANT}/")]
    assert f"{parts[0]}-3-1-1" in names
    assert f"{parts[1]}-2-1-0" in names
    created = json.loads(it.store.get(f"{upload_prefix(TENANT, upload_id)}created.json"))
    assert created["mime_type"] == "application/jsonl"
