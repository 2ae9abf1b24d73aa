"""The Uploads API."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.resources.uploads.uploads import DEFAULT_PART_SIZE
from starlette.testclient import TestClient

import api.routes.uploads as upload_routes
from activities.records.catalog import Catalog
from activities.records.uploads import UPLOAD_SECONDS
from activities.settings import Settings
from api.http.auth import Caller, caller
from api.routes.uploads import MAX_PART_BYTES
from tests.fakes.api import Api, chunked, error_of, form, open_api
from tests.fakes.uploads import (
    MAX_UPLOAD_BYTES,
    TENANT,
    another,
    complete,
    content_of,
    create,
    data,
    kept,
    make_older,
    part,
    parts_stored,
    post,
    post_part,
    upload,
)

KEYS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "file"}
FILE_KEYS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"}
PURPOSES = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
DAY = 24 * 3600


@pytest.fixture
def it(tmp_path: Path) -> Api:
    return open_api(tmp_path, max_upload_bytes=MAX_UPLOAD_BYTES)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """For tests of many rows that leave nothing in it: to make one takes longer than most of them."""
    return open_api(tmp_path_factory.mktemp("shared"), max_upload_bytes=MAX_UPLOAD_BYTES)


# The stock clients


async def test_the_stock_client_uploads_parts_in_parallel_and_orders_them_at_the_end(it: Api) -> None:
    content = random.Random(1).randbytes(500_000)
    pieces = [content[start : start + 70_000] for start in range(0, len(content), 70_000)]
    made = await it.openai.uploads.create(
        bytes=len(content),
        filename="in.jsonl",
        mime_type="application/jsonl",
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert set(made.model_dump()) == KEYS
    assert (made.object, made.bytes, made.status, made.filename) == ("upload", len(content), "pending", "in.jsonl")
    assert (made.expires_at - made.created_at, made.file) == (3600, None)
    shuffled = random.Random(2).sample(range(len(pieces)), len(pieces))
    parts = await asyncio.gather(*(it.openai.uploads.parts.create(made.id, data=pieces[number]) for number in shuffled))
    assert {(each.object, each.upload_id) for each in parts} == {("upload.part", made.id)}
    ids = [each.id for _, each in sorted(zip(shuffled, parts, strict=True))]
    done = await it.openai.uploads.complete(made.id, part_ids=ids, md5=hashlib.md5(content).hexdigest())
    assert (done.id, done.status, done.created_at) == (made.id, "completed", made.created_at)
    assert done.file
    assert done.file.expires_at == done.file.created_at + 7200
    # The file is like any other.
    assert await it.openai.files.retrieve(done.file.id) == done.file
    assert [each.id async for each in it.openai.files.list(purpose="batch")] == [done.file.id]
    assert (await it.openai.files.content(done.file.id)).content == content
    assert parts_stored(it) == []
    await it.openai.files.delete(done.file.id)
    assert [name for name in kept(it) if not name.startswith("uploads/")] == [f"files/default/{done.file.id}/deleted"]


async def test_the_stock_client_cancels(it: Api) -> None:
    upload_id, _ = await upload(it, b"abc")
    answer = await it.openai.uploads.cancel(upload_id)
    assert (answer.id, answer.status, answer.file) == (upload_id, "cancelled", None)
    assert parts_stored(it) == []
    assert await it.openai.uploads.cancel(upload_id) == answer


@pytest.mark.parametrize("size", [0, 1, 50_000, 123_457])
async def test_the_stock_clients_upload_in_chunks(it: Api, tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    content = random.Random(size).randbytes(size)
    path = tmp_path_factory.mktemp("source") / "in.jsonl"
    path.write_bytes(content)
    common: dict[str, Any] = {"mime_type": "x", "purpose": "batch", "part_size": 50_000}
    common["md5"] = hashlib.md5(content).hexdigest()
    in_memory: dict[str, Any] = {"file": content, "filename": "in.jsonl", "bytes": size, **common}
    answers = [
        await it.openai.uploads.upload_file_chunked(file=path, **common),
        await it.openai.uploads.upload_file_chunked(**in_memory),
    ]
    with TestClient(it.app, base_url="http://localhost") as http:
        blocking = OpenAI(api_key="none", base_url="http://localhost/v1", http_client=http, max_retries=0)
        answers.append(await asyncio.to_thread(lambda: blocking.uploads.upload_file_chunked(file=path, **common)))
        answers.append(await asyncio.to_thread(lambda: blocking.uploads.upload_file_chunked(**in_memory)))
    for answer in answers:
        assert answer.file
        assert (answer.file.bytes, answer.file.filename) == (size, "in.jsonl")
        assert (await it.openai.files.content(answer.file.id)).content == content
    assert parts_stored(it) == []


def test_a_part_may_be_what_the_stock_client_makes() -> None:
    assert MAX_PART_BYTES == DEFAULT_PART_SIZE == 67_108_864


# Create


@pytest.mark.parametrize("purpose", PURPOSES)
async def test_all_purposes_and_when_their_files_expire(it: Api, purpose: str) -> None:
    upload_id = await create(it, 0, purpose=purpose)
    _, answer = await complete(it, upload_id, [])
    assert set(answer) == KEYS
    assert set(answer["file"]) == FILE_KEYS
    assert (answer["purpose"], answer["file"]["purpose"]) == (purpose, purpose)
    expires_at = answer["file"]["created_at"] + 30 * DAY if purpose == "batch" else None
    assert answer["file"]["expires_at"] == expires_at


GOOD = {"bytes": 1, "filename": "f", "mime_type": "m", "purpose": "batch"}


@pytest.mark.parametrize("name", list(GOOD))
async def test_what_is_required(shared: Api, name: str) -> None:
    status, error = await post(shared, "", {key: value for key, value in GOOD.items() if key != name})
    assert (status, error["code"], error["param"]) == (400, "missing_required_parameter", name)
    assert error["message"] == f"Missing required parameter: '{name}'."


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"bytes": "1"}, "invalid_type", "bytes"),
        ({"bytes": 1.5}, "invalid_type", "bytes"),
        ({"bytes": True}, "invalid_type", "bytes"),
        ({"bytes": -1}, "integer_below_min_value", "bytes"),
        ({"bytes": 1_000_001}, "integer_above_max_value", "bytes"),
        ({"bytes": 10**400}, "integer_above_max_value", "bytes"),
        ({"filename": ""}, "empty_string", "filename"),
        ({"filename": "x" * 256}, "string_above_max_length", "filename"),
        ({"filename": None}, "invalid_type", "filename"),
        ({"mime_type": 7}, "invalid_type", "mime_type"),
        ({"purpose": "batch_output"}, "invalid_value", "purpose"),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 60}},
            "integer_below_min_value",
            "expires_after.seconds",
        ),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "invalid_value", "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at"}}, "missing_required_parameter", "expires_after.seconds"),
    ],
)
async def test_bad_values(shared: Api, change: dict[str, Any], code: str, param: str) -> None:
    status, error = await post(shared, "", GOOD | change)
    assert (status, error["code"], error["param"]) == (400, code, param)
    assert shared.stored() == []


async def test_the_largest_upload(it: Api) -> None:
    assert Settings.model_fields["max_upload_bytes"].default == 8 * 1024**3
    await create(it, 1_000_000)


# Parts


@pytest.mark.parametrize("size", [0, 1, 40_000])
async def test_a_part_of_any_size(it: Api, size: int) -> None:
    upload_id, parts = await upload(it, b"x" * size)
    status, answer = await complete(it, upload_id, parts)
    assert status == 200
    assert await content_of(it, answer) == b"x" * size


async def test_a_part_that_is_too_large(it: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_routes, "MAX_PART_BYTES", 500_000)
    upload_id = await create(it, 1_000_000)
    await part(it, upload_id, bytes(500_000))
    status, error = await post_part(it, upload_id, bytes(500_001))
    assert (status, error["type"]) == (413, "invalid_request_error")
    assert "500000 bytes" in error["message"]
    body, headers = form(data(bytes(5_000_000)))  # declared, this time
    response = await it.http.post(f"/v1/uploads/{upload_id}/parts", content=body, headers=headers)
    assert error_of(response)["message"] == error["message"]
    assert len(parts_stored(it)) == 2  # the first part's


async def test_a_form_without_data(it: Api) -> None:
    upload_id = await create(it, 3)
    body, headers = form(data(b"abc", name="file"))
    response = await it.http.post(f"/v1/uploads/{upload_id}/parts", content=body, headers=headers)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "missing_required_parameter", "data")
    body, headers = form(data(b"abc"), data(b"abc"))
    response = await it.http.post(f"/v1/uploads/{upload_id}/parts", content=body, headers=headers)
    assert error_of(response)["message"] == "A form may hold only one 'data'."
    assert parts_stored(it) == []


async def test_a_part_whose_client_leaves_is_not_there(it: Api) -> None:
    upload_id = await create(it, 2_000_000 // 2)
    body, _ = form(data(bytes(2_000_000)))
    pieces = chunked(body[:-1000], 500_000)
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": f"/v1/uploads/{upload_id}/parts",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=b0")],
    }

    async def receive() -> dict[str, Any]:
        async for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        assert parts_stored(it)  # the temporary file is there until now
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("there is nobody to answer")

    await it.app(scope, receive, send)
    assert parts_stored(it) == []


async def test_parts_that_nobody_names_are_bounded_and_dropped(it: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_routes, "MAX_PART_BYTES", 100)
    upload_id = await create(it, 50)
    parts = [await part(it, upload_id, bytes([number]) * 50) for number in range(4)]  # as after lost answers
    status, error = await post_part(it, upload_id, b"x")
    assert (status, error["param"]) == (400, "data")
    _, answer = await complete(it, upload_id, [parts[2]])
    assert await content_of(it, answer) == b"\x02" * 50
    assert parts_stored(it) == []
    monkeypatch.setattr(upload_routes, "MAX_PARTS", 2)
    upload_id, _ = await upload(it, b"", b"")
    assert (await post_part(it, upload_id, b""))[0] == 400


# Complete


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
async def test_lines_are_counted_over_parts(it: Api, ending: bytes) -> None:
    content = b"one\ntwo\n\nfour" + ending
    for cut in range(len(content) + 1):
        upload_id, parts = await upload(it, content[:cut], b"", content[cut:])
        _, answer = await complete(it, upload_id, parts)
        assert Catalog(it.store).get_file(TENANT, answer["file"]["id"]).lines == len(content.splitlines())


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["{0}", "part_0"], "No such Part object: part_0"),
        (["{0}", "../{1}"], "No such Part object: ../"),
        (["{0}", "{0}"], "occurs more than once"),
        (["{0}"], "The parts hold 3 bytes, but the upload was created for 6 bytes."),
        ([], "The parts hold 0 bytes"),
    ],
)
async def test_parts_that_do_not_make_the_file(it: Api, named: list[str], message: str) -> None:
    upload_id, parts = await upload(it, b"abc", b"def")
    status, error = await complete(it, upload_id, [name.format(*parts) for name in named])
    assert (status, error["param"], error["type"]) == (400, "part_ids", "invalid_request_error")
    assert message in error["message"]
    # Nothing is lost by it.
    status, answer = await complete(it, upload_id, parts[::-1])
    assert (status, await content_of(it, answer)) == (200, b"defabc")


async def test_parts_of_another_upload(it: Api) -> None:
    upload_id, _ = await upload(it, b"abc")
    _, others = await upload(it, b"abc")
    assert (await complete(it, upload_id, others))[0] == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "part_ids"),
        ({"part_ids": None}, "part_ids"),
        ({"part_ids": "part_1"}, "part_ids"),
        ({"part_ids": [1]}, "part_ids.0"),
        ({"part_ids": [], "md5": 5}, "md5"),
        ({"part_ids": [], "md5": "abc"}, "md5"),
        ({"part_ids": [], "md5": "0" * 32}, "md5"),
        ([], None),
        (None, None),
    ],
)
async def test_bad_completions(it: Api, body: Any, param: str | None) -> None:
    upload_id = await create(it, 0)
    status, error = await post(it, f"/{upload_id}/complete", body)
    assert (status, error["param"]) == (400, param)
    assert (await complete(it, upload_id, []))[0] == 200


async def test_an_md5_that_differs_makes_no_file(it: Api) -> None:
    upload_id, parts = await upload(it, b"abc", b"def")
    status, error = await complete(it, upload_id, parts, md5=hashlib.md5(b"defabc").hexdigest())
    assert (status, error["param"]) == (400, "md5")
    assert not any(name.startswith(("files/", "index/")) for name in kept(it))
    assert (await complete(it, upload_id, parts, md5=hashlib.md5(b"abcdef").hexdigest().upper()))[0] == 200


async def test_completing_again_is_the_same(it: Api) -> None:
    upload_id, parts = await upload(it, b"abc", b"def")
    first = await complete(it, upload_id, parts)
    assert first[0] == 200
    assert await complete(another(it), upload_id, parts) == first
    status, error = await complete(it, upload_id, parts[::-1])
    assert (status, error["param"]) == (400, "part_ids")
    make_older(it, upload_id, UPLOAD_SECONDS + 1)
    assert (await complete(it, upload_id, parts))[0] == 200
    # What its owner deleted does not come back.
    await it.openai.files.delete(first[1]["file"]["id"])
    assert (await complete(it, upload_id, parts))[1]["file"] == first[1]["file"]
    with pytest.raises(openai.NotFoundError):
        await it.openai.files.retrieve(first[1]["file"]["id"])


async def test_completing_at_once_in_two_processes_makes_one_file(it: Api) -> None:
    upload_id, parts = await upload(it, b"abc", b"def")
    answers = await asyncio.gather(*(complete(one, upload_id, parts) for one in [it, another(it)] * 4))
    assert [status for status, _ in answers] == [200] * 8
    assert len({answer["file"]["id"] for _, answer in answers}) == 1
    assert [each.id async for each in it.openai.files.list()] == [answers[0][1]["file"]["id"]]
    assert await content_of(it, answers[0][1]) == b"abcdef"
    assert parts_stored(it) == []


async def test_after_the_end_nothing_changes(it: Api) -> None:
    completed, parts = await upload(it, b"abc")
    await complete(it, completed, parts)
    cancelled, others = await upload(it, b"abc")
    await post(it, f"/{cancelled}/cancel")
    expired, late = await upload(it, b"abc")
    make_older(it, expired, UPLOAD_SECONDS)
    before = kept(it)
    for upload_id, status, part_ids in (
        (completed, "completed", None),
        (cancelled, "cancelled", others),
        (expired, "expired", late),
    ):
        code, error = await post_part(it, upload_id, b"abc")
        assert (code, error["message"]) == (400, f"Cannot add a part to an upload with status '{status}'.")
        if part_ids:
            code, error = await complete(it, upload_id, part_ids)
            assert (code, error["message"]) == (400, f"Cannot complete an upload with status '{status}'.")
    code, error = await post(it, f"/{completed}/cancel")
    assert (code, error["message"]) == (400, "Cannot cancel an upload with status 'completed'.")
    assert kept(it) == before
    assert (await post(it, f"/{expired}/cancel"))[1]["status"] == "expired"
    assert parts_stored(it) == []


async def test_an_upload_expires_after_an_hour_not_before(it: Api) -> None:
    upload_id, parts = await upload(it, b"abc")
    make_older(it, upload_id, UPLOAD_SECONDS - 30)
    parts = [await part(it, upload_id, b"def")]
    assert (await complete(it, upload_id, parts))[0] == 200


# Who sees what


@pytest.mark.parametrize("upload_id", ["upload_0", "UPLOAD_0", "..", "a.b", "x" * 65, "%2e%2e", "é"])
async def test_no_such_upload(shared: Api, upload_id: str) -> None:
    for code, error in (
        await complete(shared, upload_id, []),
        await post(shared, f"/{upload_id}/cancel"),
        await post_part(shared, upload_id, b"abc"),
    ):
        assert code == 404
        if "Invalid URL" not in error["message"]:
            assert error["message"].startswith("No such Upload object: ")
            assert error["param"] == "id"


async def test_another_tenants_upload_is_not_there(it: Api) -> None:
    upload_id, parts = await upload(it, b"abc")
    missing = "upload_" + "0" * 32
    other = another(it)
    other.app.dependency_overrides[caller] = lambda: Caller("other", None)
    calls: list[Callable[[str], Awaitable[tuple[int, dict[str, Any]]]]] = [
        lambda name: complete(other, name, parts),
        lambda name: post(other, f"/{name}/cancel"),
        lambda name: post_part(other, name, b"abc"),
    ]
    for call in calls:
        code, error = await call(upload_id)
        wanted_code, wanted = await call(missing)
        assert (code, error["message"].replace(upload_id, missing)) == (wanted_code, wanted["message"])
        assert {**error, "message": ""} == {**wanted, "message": ""}
    assert (await complete(it, upload_id, parts))[0] == 200
