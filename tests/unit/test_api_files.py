from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest

from activities.records.catalog import Catalog, FileRecord
from activities.records.keys import content_key
from activities.store.local import LocalStore
from activities.store.object_store import CHUNK, StoreError
from api.http.download import Reader
from tests.fakes.api import Api, error_of, field, file, form, open_api
from workflows.ids import BatchRef, file_id_for_key
from workflows.types import BatchPhase, BatchStatus

KEYS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"}
DAY = 24 * 3600


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """For tests of many rows that leave nothing in it: to make one takes longer than most of them."""
    return open_api(tmp_path_factory.mktemp("shared"))


async def upload(api: Api, *fields: tuple[str, str], content: bytes = b"{}\n") -> Any:
    body, headers = form(*(field(*pair) for pair in fields), file(content))
    return await api.http.post("/v1/files", content=body, headers=headers)


def save(api: Api, number: int, **changes: Any) -> str:
    """A file created in second ``number``."""
    record = FileRecord(id=f"file-{number}", bytes=3, created_ms=number * 1000, filename="f", purpose="batch")
    api.store.put(content_key("default", record.id), b"abc")
    Catalog(api.store).save_file("default", record.model_copy(update=changes))
    return record.id


async def test_the_stock_client_uploads_reads_lists_and_deletes(api: Api) -> None:
    content = b'{"custom_id":"1"}\n' * 1000
    created = await api.openai.files.create(file=content, purpose="batch")
    assert created.id.startswith("file-")
    assert len(created.id) == 29
    assert (created.bytes, created.filename, created.status) == (len(content), "upload", "processed")
    assert await api.openai.files.retrieve(created.id) == created
    assert (await api.openai.files.content(created.id)).content == content
    assert [each.id async for each in api.openai.files.list()] == [created.id]
    assert (await api.openai.files.wait_for_processing(created.id)).id == created.id
    deleted = await api.openai.files.delete(created.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (created.id, True, "file")
    left = [name for name in api.stored() if not name.startswith("due/")]
    assert left == [f"files/default/{created.id}/deleted"]
    for call in (api.openai.files.retrieve, api.openai.files.delete, api.openai.files.content):
        with pytest.raises(openai.NotFoundError):
            await call(created.id)


async def test_every_key_is_there(api: Api) -> None:
    answer = (await upload(api, ("purpose", "user_data"))).json()
    assert set(answer) == KEYS
    assert answer["object"] == "file"
    assert answer["expires_at"] is None
    assert answer["status_details"] is None
    assert abs(answer["created_at"] - time.time()) < 5
    listed = (await api.http.get("/v1/files")).json()
    assert set(listed) == {"object", "data", "first_id", "last_id", "has_more"}
    assert listed["data"] == [answer]


@pytest.mark.parametrize("purpose", ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"])
async def test_purposes(api: Api, purpose: str) -> None:
    answer = (await upload(api, ("purpose", purpose))).json()
    assert answer["purpose"] == purpose
    lifetime = 30 * DAY if purpose == "batch" else None
    assert answer["expires_at"] == (answer["created_at"] + lifetime if lifetime else None)


@pytest.mark.parametrize("purpose", ["batch_output", "", "Batch", "x" * 1000])
async def test_other_purposes(shared: Api, purpose: str) -> None:
    response = await upload(shared, ("purpose", purpose))
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("invalid_value", "purpose")
    assert "'batch'" in error["message"]
    assert shared.stored() == []


# Expiry


async def test_expiry_of_the_stock_client(api: Api) -> None:
    policy: Any = {"anchor": "created_at", "seconds": 3600}
    created = await api.openai.files.create(file=b"{}", purpose="batch", expires_after=policy)
    assert created.expires_at == created.created_at + 3600


async def test_expiry_as_json(api: Api) -> None:
    answer = (
        await upload(api, ("purpose", "vision"), ("expires_after", '{"anchor":"created_at","seconds":7200}'))
    ).json()
    assert answer["expires_at"] == answer["created_at"] + 7200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("expires_after[anchor]", "created_at")], "expires_after.seconds"),
        ([("expires_after[seconds]", "3600")], "expires_after.anchor"),
        ([("expires_after[anchor]", "now"), ("expires_after[seconds]", "3600")], "expires_after.anchor"),
        ([("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "3599")], "expires_after.seconds"),
        ([("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "2592001")], "expires_after.seconds"),
        ([("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "soon")], "expires_after.seconds"),
        ([("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "9" * 5000)], "expires_after.seconds"),
        ([("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "")], "expires_after.seconds"),
        ([("expires_after", "{}")], "expires_after.anchor"),
        ([("expires_after", "")], "expires_after"),
        ([("expires_after", "[" * 60_000)], "expires_after"),
        ([("expires_after", '{"anchor":"created_at","seconds":"3600"}')], "expires_after.seconds"),
        ([("expires_after", "{}"), ("expires_after[anchor]", "created_at")], "expires_after"),
    ],
)
async def test_bad_expiry(shared: Api, fields: list[tuple[str, str]], param: str) -> None:
    response = await upload(shared, ("purpose", "batch"), *fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert shared.stored() == []


async def test_an_expired_file_is_not_there(api: Api) -> None:
    expired, alive = save(api, 1, expires_at=int(time.time())), save(api, 2, expires_at=int(time.time()) + 60)
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/content")]:
        assert (await api.http.request(method, f"/v1/files/{expired}{path}")).status_code == 404
    assert [each.id async for each in api.openai.files.list()] == [alive]


# Lists


async def test_an_empty_list(api: Api) -> None:
    listed = (await api.http.get("/v1/files")).json()
    assert listed == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def page(api: Api, **query: Any) -> tuple[list[int], bool]:
    response = await api.http.get("/v1/files", params=query)
    assert response.status_code == 200
    listed = response.json()
    ids = [each["id"] for each in listed["data"]]
    assert (listed["first_id"], listed["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    return [int(each.removeprefix("file-")) for each in ids], listed["has_more"]


async def test_pages(api: Api) -> None:
    for number in range(5):
        save(api, number)
    assert await page(api) == ([4, 3, 2, 1, 0], False)
    assert await page(api, order="asc") == ([0, 1, 2, 3, 4], False)
    assert await page(api, limit=2) == ([4, 3], True)
    assert await page(api, limit=2, after="file-3") == ([2, 1], True)
    assert await page(api, limit=2, after="file-2") == ([1, 0], False)
    assert await page(api, limit=2, after="file-0") == ([], False)
    assert await page(api, limit=2, after="file-1", order="asc") == ([2, 3], True)
    assert await page(api, limit=5) == ([4, 3, 2, 1, 0], False)
    assert await page(api, limit=10_000) == ([4, 3, 2, 1, 0], False)


async def test_pages_of_files_of_one_moment(api: Api) -> None:
    for number in range(5):
        save(api, number, created_ms=7000)
    seen = [each.id async for each in api.openai.files.list(limit=2)]
    assert sorted(seen) == [f"file-{number}" for number in range(5)]
    backwards = [each.id async for each in api.openai.files.list(limit=2, order="asc")]
    assert backwards == seen[::-1]


async def test_filtered_pages(api: Api) -> None:
    for number in range(6):
        save(api, number, purpose="batch" if number % 2 else "vision", expires_at=1 if number == 5 else None)
    assert await page(api, purpose="batch", limit=2) == ([3, 1], False)
    assert await page(api, purpose="vision", limit=2) == ([4, 2], True)
    assert await page(api, purpose="evals") == ([], False)
    assert await page(api, after="file-5", limit=1) == ([4], True)  # an expired file still marks a place


@pytest.mark.parametrize("after", ["file-x", "", "../..", "batch_1"])
async def test_a_page_after_what_is_not_there(api: Api, after: str) -> None:
    response = await api.http.get("/v1/files", params={"after": after})
    assert response.status_code == 400
    assert error_of(response)["param"] == "after"


async def test_a_file_that_goes_while_it_is_listed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        save(api, number)
    api.store.delete("files/default/file-1/object.json")
    assert await page(api, limit=2) == ([2, 0], False)


# Content


async def test_headers_of_the_content(api: Api) -> None:
    response = await api.http.get(f"/v1/files/{save(api, 1, filename='in.jsonl')}/content")
    assert response.content == b"abc"
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-length"] == "3"
    assert response.headers["content-disposition"] == 'attachment; filename="in.jsonl"'


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("Anfrage ä.jsonl", "attachment; filename=\"Anfrage _.jsonl\"; filename*=UTF-8''Anfrage%20%C3%A4.jsonl"),
        ('a"; x="b', 'attachment; filename="a_; x=_b"'),
        ("a\r\nSet-Cookie: b", 'attachment; filename="aSet-Cookie: b"'),
        ("../../etc/passwd", 'attachment; filename="passwd"'),
        ("C:\\x\\y.jsonl", 'attachment; filename="y.jsonl"'),
        ("\x00", 'attachment; filename="file"'),
        ("/", 'attachment; filename="file"'),
        ("x" * 1000 + ".jsonl", f'attachment; filename="{"x" * 144}.jsonl"'),
    ],
)
async def test_names_in_the_header(api: Api, name: str, header: str) -> None:
    response = await api.http.get(f"/v1/files/{save(api, 1, filename=name)}/content")
    assert response.headers["content-disposition"] == header


async def test_names_survive_the_way_there_and_back(api: Api) -> None:
    created = await api.openai.files.create(file=("批处理 ä.jsonl", b"{}"), purpose="batch")
    assert created.filename == "批处理 ä.jsonl"
    assert (await api.openai.files.retrieve(created.id)).filename == created.filename
    assert (await api.openai.files.content(created.id)).content == b"{}"


async def test_large_content_comes_in_chunks(api: Api) -> None:
    content = bytes(range(256)) * (3 * CHUNK // 256) + b"end"
    created = await api.openai.files.create(file=content, purpose="batch")
    sizes: list[int] = []
    async with api.http.stream("GET", f"/v1/files/{created.id}/content") as response:
        assert response.headers["content-length"] == str(len(content))
        sizes.extend([len(chunk) async for chunk in response.aiter_raw()])
    assert sum(sizes) == len(content)
    assert (await api.openai.files.content(created.id)).content == content


async def test_empty_content(api: Api) -> None:
    created = await api.openai.files.create(file=b"", purpose="batch")
    assert (await api.openai.files.content(created.id)).content == b""


async def test_a_record_without_content_is_404(api: Api) -> None:
    file_id = save(api, 1)
    api.store.delete(content_key("default", file_id))
    assert (await api.http.get(f"/v1/files/{file_id}/content")).status_code == 404


async def test_content_that_cannot_be_read_at_all_is_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*_: Any) -> Iterator[bytes]:
        raise StoreError("bad disk")
        yield b""

    monkeypatch.setattr(api.store, "stream", stream)
    response = await api.http.get(f"/v1/files/{save(api, 1)}/content")
    assert response.status_code == 503
    error_of(response)


@pytest.mark.parametrize("fails", [False, True])
async def test_content_that_breaks_off_does_not_end_cleanly(
    api: Api, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def stream(*_: Any) -> Iterator[bytes]:
        yield b"a"
        if fails:
            raise StoreError("bad disk")

    file_id = save(api, 1)
    monkeypatch.setattr(api.store, "stream", stream)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.sleep(60)

    path = f"/v1/files/{file_id}/content"
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    # Raised through to the server, which then cuts the connection.
    with pytest.raises(RuntimeError, match="response already started"):
        await api.app(scope, receive, send)
    assert sent[0]["status"] == 200
    assert all(message["more_body"] for message in sent[1:])


async def test_a_client_that_leaves_a_download_leaves_no_file_open(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    def stream(*_: Any) -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    monkeypatch.setattr(api.store, "stream", stream)
    file_id = save(api, 1)
    gc.disable()  # it must not need the collector
    try:
        sent = asyncio.Event()

        async def send(_: Any) -> None:
            sent.set()
            await asyncio.sleep(0)

        async def receive() -> Any:
            await sent.wait()
            return {"type": "http.disconnect"}

        path = f"/v1/files/{file_id}/content"
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
        await api.app(scope, receive, send)
        assert await asyncio.to_thread(closed.wait, 5)
    finally:
        gc.enable()


async def test_delete_with_a_content_type_and_no_body(api: Api) -> None:
    response = await api.http.delete(f"/v1/files/{save(api, 1)}", headers={"content-type": "application/json"})
    assert response.json() == {"id": "file-1", "object": "file", "deleted": True}


async def test_an_upload_repeated_with_its_key_makes_one_file(api: Api) -> None:
    files, headers = api.openai.files, {"Idempotency-Key": "nightly"}
    first = await files.create(file=("a.jsonl", b"{}\n{}"), purpose="batch", extra_headers=headers)
    again = await files.create(file=("a.jsonl", b"{}\n{}"), purpose="batch", extra_headers=headers)
    assert again == first
    assert [file.id async for file in files.list()] == [first.id]
    assert Catalog(api.store).get_file("default", first.id).lines == 2
    with pytest.raises(openai.ConflictError, match="Conflict") as caught:
        await files.create(file=("a.jsonl", b"other"), purpose="batch", extra_headers=headers)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert (await files.content(first.id)).content == b"{}\n{}"


@pytest.mark.parametrize("gone", ["deleted", "expired"])
async def test_a_key_stands_for_its_content_also_once_the_file_is_gone(
    api: Api, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    files, headers = api.openai.files, {"Idempotency-Key": "monthly"}
    first = await files.create(file=("a.jsonl", b"{}"), purpose="batch", extra_headers=headers)
    now = time.time() + 31 * DAY
    if gone == "deleted":
        await files.delete(first.id)
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
    with pytest.raises(openai.ConflictError) as caught:
        await files.create(file=("a.jsonl", b"other"), purpose="batch", extra_headers=headers)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.code == "idempotency_conflict"
    # The same upload makes the file available again, under its id.
    again = await files.create(file=("a.jsonl", b"{}"), purpose="batch", extra_headers=headers)
    assert (again.id, again.created_at) == (first.id, int(now))
    assert again.expires_at == int(now) + 30 * DAY
    assert (await files.content(again.id)).content == b"{}"
    assert [file.id async for file in files.list()] == [first.id]
    assert len([name for name in api.stored() if name.startswith("index/")]) == 1


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
async def test_a_record_that_cannot_be_written_leaves_no_file(
    api: Api, monkeypatch: pytest.MonkeyPatch, fails_at: int, keyed: bool
) -> None:
    put, put_new, puts = api.store.put, api.store.put_new, 0

    def count() -> None:
        nonlocal puts
        puts += 1
        if puts == fails_at:
            raise StoreError("disk full")

    def failing(key: str, data: bytes) -> None:
        count()
        put(key, data)

    def failing_new(key: str, data: bytes) -> bytes:
        count()
        return put_new(key, data)

    monkeypatch.setattr(api.store, "put", failing)
    monkeypatch.setattr(api.store, "put_new", failing_new)
    files, headers = api.openai.files, {"Idempotency-Key": "nightly"} if keyed else {}
    with pytest.raises(openai.InternalServerError):
        await files.create(file=("a.jsonl", b"{}"), purpose="batch", extra_headers=headers)
    assert [file async for file in files.list()] == []
    created = await files.create(file=("a.jsonl", b"{}"), purpose="batch", extra_headers=headers)
    assert (await files.content(created.id)).content == b"{}"


async def test_an_upload_in_the_place_of_a_file_that_is_being_deleted_is_to_come_again(api: Api) -> None:
    files, headers = api.openai.files, {"Idempotency-Key": "nightly"}
    mark = f"files/default/{file_id_for_key('default', 'nightly')}/deleting-{int(time.time())}-a"
    api.store.put(mark, b"")
    with pytest.raises(openai.InternalServerError) as caught:
        await files.create(file=("a.jsonl", b"{}"), purpose="batch", extra_headers=headers)
    assert caught.value.status_code == 503
    assert [file async for file in files.list()] == []
    api.store.delete(mark)
    created = await files.create(file=("a.jsonl", b"{}"), purpose="batch", extra_headers=headers)
    assert (await files.content(created.id)).content == b"{}"


def test_a_reader_that_is_closed_has_closed_its_file(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a/b", b"x")
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    chunks = store.stream("a/b")
    reader = Reader(chunks)
    reader.close()
    reader.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(StoreError):
        next(chunks)


PURPOSES: tuple[Any, ...] = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")


def put(api: Api, file_id: str, **changes: Any) -> str:
    record = FileRecord(id=file_id, bytes=3, created_ms=7000, filename="f", purpose="batch")
    api.store.put(content_key("default", record.id), b"abc")
    Catalog(api.store).save_file("default", record.model_copy(update=changes))
    return record.id


async def test_files_of_every_purpose_can_be_downloaded(api: Api) -> None:
    for purpose in PURPOSES:
        created = await api.openai.files.create(file=("x", b"abc"), purpose=purpose)
        assert (await api.openai.files.content(created.id)).content == b"abc"
    assert (await api.openai.files.content(put(api, "file-r", purpose="batch_output"))).content == b"abc"


@pytest.mark.parametrize(
    ("name", "content"), [("in.txt", b"{}"), ("upload", b"no json"), ("in.jsonl", b""), ("in.jsonl", b"\xff\x00")]
)
async def test_any_name_and_content_is_taken_and_left_to_the_batch(api: Api, name: str, content: bytes) -> None:
    created = await api.openai.files.create(file=(name, content), purpose="batch")
    assert (created.filename, created.bytes, created.status) == (name, len(content), "processed")


async def test_content_is_sent_at_once_whatever_the_client_accepts(api: Api) -> None:
    url = f"/v1/files/{put(api, 'file-1')}/content"
    for accept in ("application/binary", "text/html", "application/json", "*/*"):
        response = await api.http.get(url, headers={"accept": accept})
        assert (response.status_code, response.content) == (200, b"abc")
        assert response.headers["content-type"] == "application/octet-stream"


async def test_results_are_listed_by_their_purpose(api: Api) -> None:
    put(api, "file-in")
    for name in ("file-o", "file-e"):
        put(api, name, purpose="batch_output")
    assert {each.id async for each in api.openai.files.list(purpose="batch_output")} == {"file-o", "file-e"}
    assert [each.id async for each in api.openai.files.list(purpose="batch")] == ["file-in"]
    assert [each.id async for each in api.openai.files.list(purpose="no such purpose")] == []


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_of_one_walk_over_files_of_one_moment(api: Api, order: Any) -> None:
    names = [put(api, f"file-{number}", created_ms=7000 + number // 3) for number in range(6)]
    seen = [each.id async for each in api.openai.files.list(limit=1, order=order)]
    assert sorted(seen) == names
    times = [int(name.removeprefix("file-")) // 3 for name in seen]
    assert times == sorted(times, reverse=order == "desc")


async def test_the_last_page_says_that_it_is_the_last(api: Api) -> None:
    for number in range(2):
        put(api, f"file-{number}", created_ms=number * 1000)
    page = (await api.http.get("/v1/files?limit=1&after=file-1")).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("file-0", "file-0", False)
    page = (await api.http.get("/v1/files?limit=1&after=file-0")).json()
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("expired", [False, True])
async def test_a_client_may_delete_what_it_lists(api: Api, order: Literal["asc", "desc"], expired: bool) -> None:
    """A file that was deleted by its owner, or by the janitor, still marks a place in the list."""
    for number in range(25):
        put(api, f"file-{number}", created_ms=number * 1000)
    catalog, seen = Catalog(api.store), 0
    async for listed in api.openai.files.list(limit=10, order=order):
        seen += 1
        if expired:
            record = catalog.get_file("default", listed.id)
            catalog.save_file("default", record.model_copy(update={"expires_at": 1}))
            assert catalog.delete_expired_file("default", listed.id)
        else:
            await api.openai.files.delete(listed.id)
    assert seen == 25
    assert [listed async for listed in api.openai.files.list()] == []


async def test_a_result_file_may_be_deleted_and_the_batch_keeps_its_id(api: Api) -> None:
    batch = await api.openai.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
    view = await api.gateway.find(BatchRef("default", batch.id))
    api.gateway.set_status(
        view.record,
        BatchStatus(phase=BatchPhase.COMPLETED, output_file_id=put(api, "file-o", purpose="batch_output")),
    )
    assert (await api.openai.files.delete("file-o")).deleted
    assert (await api.openai.batches.retrieve(batch.id)).output_file_id == "file-o"
    response = await api.http.get("/v1/files/file-o/content")
    assert response.status_code == 404
    assert error_of(response)["message"] == "No such File object: file-o"
    assert (await api.http.delete("/v1/files/file-o")).status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-3", 206, 0, 4),
        ("bytes=4-", 206, 4, 10),
        ("bytes=-3", 206, 7, 10),
        ("bytes=-30", 206, 0, 10),
        ("bytes=8-99", 206, 8, 10),
        ("bytes=10-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=5-3", 200, 0, 10),
        ("bytes=0-1,4-5", 200, 0, 10),
        ("bytes=-", 200, 0, 10),
        ("lines=1-2", 200, 0, 10),
    ],
)
async def test_a_range_of_the_content(api: Api, asked: str, status: int, start: int, end: int) -> None:
    uploaded = await api.openai.files.create(file=b"0123456789", purpose="batch")
    answer = await api.http.get(f"/v1/files/{uploaded.id}/content", headers={"Range": asked})
    assert answer.status_code == status
    if status == 416:
        assert error_of(answer)["type"] == "invalid_request_error"
        assert answer.headers["content-range"] == "bytes */10"
        return
    assert answer.content == b"0123456789"[start:end]
    assert int(answer.headers["content-length"]) == end - start
    assert answer.headers.get("content-range") == (f"bytes {start}-{end - 1}/10" if status == 206 else None)


async def test_content_is_resumed_only_where_it_is_the_same(api: Api) -> None:
    uploaded = await api.openai.files.create(file=b"0123456789", purpose="batch")
    url = f"/v1/files/{uploaded.id}/content"
    head = await api.http.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")
    assert head.headers["accept-ranges"] == "bytes"
    tag = head.headers["etag"]
    same = await api.http.get(url, headers={"Range": "bytes=4-", "If-Range": tag})
    assert (same.status_code, same.content, same.headers["etag"]) == (206, b"456789", tag)
    other = await api.http.get(url, headers={"Range": "bytes=4-", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, b"0123456789")
    known = await api.http.get(url, headers={"If-None-Match": f'"x", {tag}'})
    assert (known.status_code, known.content) == (304, b"")
    await api.openai.files.delete(uploaded.id)
    assert (await api.http.head(url)).status_code == 404
