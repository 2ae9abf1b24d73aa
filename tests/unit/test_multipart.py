from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activities.store.object_store import CHUNK, ObjectWriter, StoreError
from tests.fakes.api import Api, chunked, error_of, field, file, form, open_api

LIMIT = 3 * CHUNK


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path, max_file_bytes=LIMIT)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """For tests of many rows that leave nothing in it: to make one takes longer than most of them."""
    return open_api(tmp_path_factory.mktemp("shared"), max_file_bytes=LIMIT)


async def post(api: Api, *parts: tuple[str, bytes], size: int = 1000) -> Any:
    body, headers = form(*parts)
    return await api.http.post("/v1/files", content=chunked(body, size), headers=headers)


async def upload(api: Api, *parts: tuple[str, bytes], size: int = 1000) -> tuple[dict[str, Any], bytes]:
    response = await post(api, *parts, size=size)
    assert response.status_code == 200, response.text
    content = await api.http.get(f"/v1/files/{response.json()['id']}/content")
    return response.json(), content.content


async def refused(api: Api, *parts: tuple[str, bytes], status: int = 400) -> dict[str, Any]:
    response = await post(api, *parts)
    assert response.status_code == status
    assert api.stored() == []
    return error_of(response)


@pytest.mark.parametrize("size", [1, 7, 64 * 1024])
@pytest.mark.parametrize("file_first", [False, True])
async def test_order_of_the_parts_does_not_matter(api: Api, file_first: bool, size: int) -> None:
    content = b'{"custom_id":"1"}\r\n--b\r\n--b1\r\n'
    parts = [field("purpose", "batch"), file(content)]
    answer, stored = await upload(api, *(reversed(parts) if file_first else parts), size=size)
    assert (answer["filename"], answer["bytes"], answer["purpose"]) == ("in.jsonl", len(content), "batch")
    assert stored == content


async def test_a_file_of_several_chunks_arrives_whole(api: Api) -> None:
    content = bytes(range(256)) * (LIMIT // 256)
    answer, stored = await upload(api, file(content), field("purpose", "batch"), size=64 * 1024)
    assert answer["bytes"] == LIMIT
    assert stored == content


async def test_an_upload_is_written_in_bounded_pieces(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    open_writer = api.store.writer

    def writer(key: str) -> Any:
        context = open_writer(key)
        if not key.endswith("/content"):
            return context

        class Spy:
            def __enter__(self) -> ObjectWriter:
                inner = context.__enter__()
                write = inner.write

                def spied(data: bytes) -> None:
                    sizes.append(len(data))
                    write(data)

                monkeypatch.setattr(inner, "write", spied)
                return inner

            def __exit__(self, *exception: Any) -> Any:
                return context.__exit__(*exception)

        return Spy()

    monkeypatch.setattr(api.store, "writer", writer)
    await upload(api, field("purpose", "batch"), file(b"x" * LIMIT), size=64 * 1024)
    assert sum(sizes) == LIMIT
    assert max(sizes) <= CHUNK + 64 * 1024


@pytest.mark.parametrize("kind", ["", "application/octet-stream", "text/plain; charset=latin-1"])
async def test_the_type_of_the_part_does_not_matter(api: Api, kind: str) -> None:
    answer, stored = await upload(api, file(b"{}\n", kind=kind), field("purpose", "batch"))
    assert answer["bytes"] == 3
    assert stored == b"{}\n"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('filename="Anfrage ä 批.jsonl"', "Anfrage ä 批.jsonl"),
        ('filename=""', "upload"),
        ("", "upload"),
        ("filename=plain.jsonl", "plain.jsonl"),
        ('filename="a;b\\"c.jsonl"', 'a;b"c.jsonl'),
    ],
)
async def test_file_names(api: Api, disposition: str, name: str) -> None:
    answer, _ = await upload(api, file(b"{}\n", disposition), field("purpose", "batch"))
    assert answer["filename"] == name


async def test_a_name_that_is_not_utf8_is_kept_somehow(api: Api) -> None:
    body, headers = form(field("purpose", "batch"), file(b"{}", 'filename="@@"'))
    response = await api.http.post("/v1/files", content=body.replace(b"@@", b"\xe4.x"), headers=headers)
    assert response.json()["filename"] == "ä.x"


async def test_an_empty_file_is_a_file(api: Api) -> None:
    answer, stored = await upload(api, field("purpose", "batch"), file(b""))
    assert answer["bytes"] == 0
    assert stored == b""


async def test_other_file_parts_are_ignored(api: Api) -> None:
    other = ('Content-Disposition: form-data; name="other"; filename="x"', b"y" * 100_000)
    _, stored = await upload(api, other, field("purpose", "batch"), file(b"{}"))
    assert stored == b"{}"


async def test_missing_parts(api: Api) -> None:
    error = await refused(api, field("purpose", "batch"))
    assert (error["code"], error["param"]) == ("missing_required_parameter", "file")
    error = await refused(api, file(b"{}"))
    assert (error["code"], error["param"]) == ("missing_required_parameter", "purpose")
    assert (await refused(api))["param"] == "file"


async def test_two_files_are_refused(api: Api) -> None:
    error = await refused(api, file(b"1"), file(b"2"), field("purpose", "batch"))
    assert error["param"] == "file"


@pytest.mark.parametrize(
    "parts",
    [
        [field("purpose", "x" * 70_000), file(b"")],
        [field("a", "x" * 40_000), field("b", "x" * 40_000), file(b"")],
        [field(f"f{number}", "") for number in range(101)],
        [("X-A: 1\r\n" * 50 + 'Content-Disposition: form-data; name="file"', b"")],
        [('Content-Disposition: form-data; name="file"; filename="' + "x" * 10_000 + '"', b"")],
        [("X: y", b"no name")],
        [("no colon", b"")],
    ],
)
async def test_bombs_and_malformed_parts(shared: Api, parts: list[tuple[str, bytes]]) -> None:
    error = await refused(shared, file(b"x" * 2 * CHUNK), *parts)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"", ""),
        (b"purpose=batch", "application/x-www-form-urlencoded"),
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary="),
        (b"", "multipart/form-data; boundary=" + "x" * 300),
        (b"", "multipart/form-data; boundary=b0"),
        (b"--b0--", "multipart/form-data; boundary=b0"),
        (b"garbage", "multipart/form-data; boundary=b0"),
        (form(field("purpose", "batch"), file(b"{}"))[0][:-8], "multipart/form-data; boundary=b0"),
    ],
)
async def test_bodies_that_are_no_form(shared: Api, body: bytes, kind: str) -> None:
    response = await shared.http.post("/v1/files", content=body, headers={"content-type": kind})
    assert response.status_code == 400
    error_of(response)
    assert shared.stored() == []


async def test_a_chunked_file_over_the_limit(api: Api) -> None:
    error = await refused(api, file(b"x" * (LIMIT + 1)), field("purpose", "batch"), status=413)
    assert str(LIMIT) in error["message"]


async def test_a_declared_body_over_the_limit_is_refused_unread(api: Api) -> None:
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"x" * CHUNK, "more_body": received < 100}

    sent = await call(api, receive, {"content-length": str(100 * CHUNK)})
    assert sent[0]["status"] == 413
    assert b'"error"' in sent[1]["body"]
    # Read on for the sake of clients that send all before they read, but not for ever.
    assert received < 10
    assert api.stored() == []


async def test_a_client_that_waits_to_be_asked_is_refused_without_sending(api: Api) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("reading asks the client to send")

    sent = await call(api, receive, {"content-length": str(100 * CHUNK), "expect": "100-continue"})
    assert sent[0]["status"] == 413


async def test_a_body_that_is_all_wrapping_is_bounded_too(api: Api) -> None:
    body, headers = form(field("purpose", "batch"), file(b"{}"))
    padded = body + b"e" * (2 * LIMIT)
    response = await api.http.post("/v1/files", content=chunked(padded, CHUNK), headers=headers)
    assert response.status_code == 413
    error_of(response)


async def test_a_client_that_leaves_leaves_nothing(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    body, _ = form(field("purpose", "batch"), file(b"x" * 2 * CHUNK))
    pieces: AsyncIterator[bytes] = chunked(body[:-100_000], CHUNK // 2)

    async def receive() -> dict[str, Any]:
        async for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        assert api.stored()  # the temporary file is there until now
        return {"type": "http.disconnect"}

    with caplog.at_level(logging.INFO):
        assert await call(api, receive) == []
    assert api.stored() == []
    assert [record.levelname for record in caplog.records if record.name.startswith("everbatch")] == ["INFO"]
    assert " 499 " in caplog.text


async def test_a_cancelled_upload_leaves_nothing(api: Api) -> None:
    body, _ = form(field("purpose", "batch"), file(b"x" * 2 * CHUNK))
    arrived = asyncio.Event()
    pieces = chunked(body[:-100_000], CHUNK // 2)

    async def receive() -> dict[str, Any]:
        async for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        arrived.set()
        await asyncio.sleep(60)
        raise AssertionError

    task = asyncio.create_task(call(api, receive))
    await arrived.wait()
    assert api.stored()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert api.stored() == []


async def test_a_store_that_fails_is_503_and_leaves_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(key: str, data: bytes) -> None:
        raise StoreError("no space left")

    monkeypatch.setattr(api.store, "put", put)
    response = await post(api, field("purpose", "batch"), file(b"{}"))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert "space" not in error_of(response)["message"]
    assert api.stored() == []


_tokens = st.sampled_from(
    [
        b"--b0",
        b"--b0\r\n",
        b"--b0--",
        b"--b0--\r\n",
        b"\r\n",
        b"\r\n--b0",
        b"\n",
        b"Content-Disposition: form-data; ",
        b'name="file"',
        b'; filename="x"',
        b'name="purpose"',
        b"\r\n\r\n",
        b"batch",
        b"x" * 5000,
    ]
)


@given(
    pieces=st.lists(st.one_of(_tokens, st.binary(max_size=40)), max_size=30),
    boundary=st.sampled_from(["b0", "b0 ", '"b0"', "", "\r", "\xe4"]),
    size=st.integers(1, 64),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_body_is_a_server_error(api: Api, pieces: list[bytes], boundary: str, size: int) -> None:
    body = chunked(b"".join(pieces), size)
    ended = False

    async def receive() -> dict[str, Any]:
        nonlocal ended
        async for piece in body:
            return {"type": "http.request", "body": piece, "more_body": True}
        assert not ended, "read past the end"
        ended = True
        return {"type": "http.request", "body": b"", "more_body": False}

    before = api.stored()
    sent = await call(api, receive, {"content-type": f"multipart/form-data; boundary={boundary}"})
    assert sent[0]["status"] in (200, 400, 413)
    if sent[0]["status"] != 200:
        assert api.stored() == before


async def call(api: Api, receive: Any, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """POST /v1/files as a server would call it, and what was sent."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"content-type": "multipart/form-data; boundary=b0"} | (headers or {})
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/files",
        "raw_path": b"/v1/files",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await api.app(scope, receive, send)
    return sent
