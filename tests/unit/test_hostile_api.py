"""What no client that means well sends. Every answer is one that clients can read, and none is a server error.

`HYPOTHESIS_PROFILE=deep` looks much longer.
"""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.fakes.api import Api, chunked, error_of, field, file, form, open_api

GOOD: dict[str, Any] = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
JSON = {b"content-type": b"application/json"}
MEGABYTE = 1 << 20

shared_api = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

# With halves of surrogate pairs, NUL and all that is not printed.
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=8) | st.sampled_from(
    ["\ud800", "\x00", "\u2028", "\r\nx: y", "../..", "é" * 600, "x" * 100_000, "", "created_at", "24h"]
)
numbers = (
    st.integers()
    | st.floats()
    | st.booleans()
    | st.sampled_from([10**400, -(10**400), 2**63, -1, 0, 3600, 3600.0, 1e308, float("nan"), float("inf")])
)
values = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class _Response(NamedTuple):
    """What :func:`error_of` looks at."""

    content: bytes
    headers: dict[str, str]


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path, max_file_bytes=4 * MEGABYTE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """For tests of many rows that leave nothing in it: to make one takes longer than most of them."""
    return open_api(tmp_path_factory.mktemp("shared"), max_file_bytes=4 * MEGABYTE)


async def ask(
    api: Api,
    method: str,
    path: bytes,
    query: bytes = b"",
    body: bytes | AsyncIterator[bytes] = b"",
    headers: dict[bytes, bytes] | list[tuple[bytes, bytes]] | None = None,
) -> Answer:
    """As a server would call the application: no client library mends what is sent."""
    pieces = chunked(body, 64 * 1024) if isinstance(body, bytes) else body
    sent: list[dict[str, Any]] = []
    ended = False

    async def receive() -> dict[str, Any]:
        nonlocal ended
        async for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        if ended:
            await asyncio.Event().wait()  # the client waits for its answer
        ended = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.decode("utf-8", "replace"),
        "raw_path": quote_from_bytes(path).encode(),
        "root_path": "",
        "query_string": query,
        "headers": list((headers or {}).items()) if not isinstance(headers, list) else headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await api.app(scope, receive, send)
    start = sent[0]
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    assert found["x-request-id"].startswith("req_")
    return Answer(start["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


def refused(answer: Answer, *statuses: int) -> dict[str, Any]:
    """The error of an answer that must be one of these, in the envelope."""
    assert answer.status in statuses, answer
    error = error_of(_Response(answer.body, answer.headers))  # pyright: ignore[reportArgumentType]
    assert 0 < len(error["message"]) < 1000
    return error


@contextmanager
def at_most(megabytes: int) -> Generator[None]:
    """What is allocated meanwhile, at its peak."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * MEGABYTE
    finally:
        tracemalloc.stop()


# Creating a batch


@shared_api
@given(st.dictionaries(st.sampled_from([*GOOD, "metadata", "output_expires_after", "idempotency_key"]), values))
@example({"metadata": {"\ud800": "x"}})
@example({"metadata": {"x": "\ud800"}})
@example({"endpoint": "\ud800"})
@example({"completion_window": "\ud800"})
@example({"output_expires_after": {"anchor": "\ud800", "seconds": 3600}})
@example({"metadata": {"\x00": "\u2028\r\n"}})
@example({"idempotency_key": "é" * 255})
async def test_any_parameters_of_a_batch(api: Api, changes: dict[str, Any]) -> None:
    answer = await ask(api, "POST", b"/v1/batches", body=json.dumps(GOOD | changes).encode(), headers=JSON)
    if answer.status == 200:
        batch = json.loads(answer.body)
        assert batch["metadata"] == changes.get("metadata")
        assert batch["input_file_id"] == (GOOD | changes)["input_file_id"]
        found = await ask(api, "GET", f"/v1/batches/{batch['id']}".encode())
        assert json.loads(found.body)["metadata"] == changes.get("metadata")
    else:
        refused(answer, 400, 409)


@shared_api
@given(st.sampled_from([b"/v1/batches", b"/v1/uploads", b"/v1/uploads/u/complete"]), st.binary() | values)
async def test_any_body_where_json_is_expected(api: Api, path: bytes, value: Any) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    refused(await ask(api, "POST", path, body=body, headers=JSON), 400, 404)


@pytest.mark.parametrize(
    "body",
    [
        b'{"input_file_id":' + b"9" * 1_000_000 + b"}",
        b'{"metadata":{"x":' + b"[" * 400_000 + b"]" * 400_000 + b"}}",
        b'{"metadata":{' + b",".join(b'"%06x":""' % number for number in range(80_000)) + b"}}",
        b'{"metadata":[' + b"{}," * 300_000 + b"{}]}",
        json.dumps(GOOD | {"metadata": {str(number): 7 for number in range(60_000)}}).encode(),
        b'{"metadata":"' + b"\\u0000" * 150_000 + b'"}',
        b"\xef\xbb\xbf" + json.dumps({}).encode(),
        b'{"input_file_id":"\xff"}',
    ],
    ids=["digits", "nesting", "100,000 keys", "objects", "100,000 errors", "NUL", "mark", "no utf-8"],
)
async def test_bombs_in_json(shared: Api, body: bytes) -> None:
    with at_most(100):
        refused(await ask(shared, "POST", b"/v1/batches", body=body, headers=JSON), 400)


async def test_of_a_member_that_comes_twice_the_last_counts(api: Api) -> None:
    body = json.dumps(GOOD).encode()[:-1] + b',"metadata":{"a":"1"},"metadata":{"a":"2","a":"3"}}'
    answer = await ask(api, "POST", b"/v1/batches", body=body, headers=JSON)
    assert json.loads(answer.body)["metadata"] == {"a": "3"}


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"deflate, gzip"])
@pytest.mark.parametrize("path", [b"/v1/batches", b"/v1/files", b"/v1/uploads/x/parts"])
async def test_a_body_that_is_compressed_is_not_unpacked(shared: Api, path: bytes, encoding: bytes) -> None:
    kind = b"multipart/form-data; boundary=b0" if path != b"/v1/batches" else b"application/json"
    headers = {b"content-type": kind, b"content-encoding": encoding}
    refused(await ask(shared, "POST", path, body=b"\x1f\x8b\x08\x00" + b"\x00" * 1000, headers=headers), 400, 404)
    assert shared.stored() == []


# Paths, queries, headers


paths = st.lists(
    st.sampled_from([b"v1", b"files", b"batches", b"uploads", b"models", b"content", b"cancel", b"parts", b"complete"])
    | st.sampled_from([b"..", b".", b"", b"\x00", b"%2e%2e", b"\xff", b"file-" + b"x" * 24, b"x" * 10_000])
    | st.binary(max_size=6),
    max_size=6,
)
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 500]


@shared_api
@given(st.sampled_from(METHODS), paths, st.booleans())
async def test_any_path_is_an_answer_or_an_error_in_the_envelope(
    api: Api, method: str, parts: list[bytes], rooted: bool
) -> None:
    path = b"/v1/" * rooted + b"/".join(parts)
    assume(not rooted or path[4:8] != b"/v1/")
    answer = await ask(api, method, path)
    if answer.status != 200:
        refused(answer, 400, 404, 405)
    assert api.stored() == []


@pytest.mark.parametrize("path", [b"/v1/files/%b", b"/v1/files/%b/content", b"/v1/batches/%b", b"/v1/uploads/%b"])
@given(st.binary(min_size=1).filter(lambda name: b"/" not in name) | st.just(b"x" * MEGABYTE))
@shared_api
async def test_any_id_that_nobody_has(shared: Api, path: bytes, name: bytes) -> None:
    refused(await ask(shared, "GET", path % name), 404)


queries = st.lists(
    st.tuples(
        st.sampled_from([b"limit", b"order", b"after", b"purpose", b"x"]) | st.binary(max_size=4),
        st.sampled_from(
            [b"0", b"-1", b"1", b"100", b"101", b"1e3", b"1.0", b"true", b"NaN", b"9" * 5000, b"%00", b"%ff", b"asc"]
        )
        | st.binary(max_size=6),
    ),
    max_size=4,
)


@shared_api
@given(st.sampled_from([b"/v1/files", b"/v1/batches"]), queries)
async def test_any_query(api: Api, path: bytes, query: list[tuple[bytes, bytes]]) -> None:
    answer = await ask(api, "GET", path, b"&".join(name + b"=" + value for name, value in query))
    if answer.status == 200:
        assert json.loads(answer.body)["data"] == []
    else:
        refused(answer, 400)


@pytest.mark.parametrize("path", [b"/v1/files", b"/v1/batches"])
async def test_a_query_of_a_megabyte(api: Api, path: bytes) -> None:
    with at_most(20):
        error = refused(await ask(api, "GET", path, b"after=" + b"x" * MEGABYTE), 400)
        assert error["param"] == "after"
        refused(await ask(api, "GET", path, b"limit=" + b"9" * MEGABYTE), 400)


NAMES = [
    *(b"authorization", b"api-key", b"content-type", b"content-length", b"transfer-encoding", b"expect", b"range"),
    *(b"idempotency-key", b"x-client-request-id", b"x-stainless-retry-count", b"x-http-method-override", b"host"),
    *(b"x-forwarded-for", b"cookie", b"content-encoding", b"accept", b"origin"),
]


@shared_api
@given(
    st.sampled_from([("POST", b"/v1/batches"), ("POST", b"/v1/files"), ("GET", b"/v1/files"), ("GET", b"/ready")]),
    st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=20) | st.just(b"x" * 60_000)), max_size=5),
)
async def test_any_headers(api: Api, target: tuple[str, bytes], headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps(GOOD).encode() if target[0] == "POST" else b""
    answer = await ask(api, *target, body=body, headers=[*headers, *JSON.items()])
    if answer.status != 200:
        refused(answer, 400, 403, 409, 413, 421)


@pytest.mark.parametrize("name", [b"x-http-method-override", b"x-http-method", b"x-method-override"])
async def test_no_header_changes_the_method(api: Api, name: bytes) -> None:
    body, headers = form(field("purpose", "batch"), file(b"{}"))
    uploaded = await api.http.post("/v1/files", content=body, headers=headers)
    path = f"/v1/files/{uploaded.json()['id']}".encode()
    refused(await ask(api, "POST", path, b"_method=DELETE", headers={name: b"DELETE"}), 405)
    assert (await ask(api, "GET", path)).status == 200


@pytest.mark.parametrize("wanted", [b"bytes=9-1", b"bytes=" + b"0-," * 20_000 + b"1-", b"\xff"])
async def test_a_hostile_range_of_a_content_is_the_whole(api: Api, wanted: bytes) -> None:
    body, headers = form(field("purpose", "batch"), file(b"0123456789"))
    uploaded = await api.http.post("/v1/files", content=body, headers=headers)
    path = f"/v1/files/{uploaded.json()['id']}/content".encode()
    answer = await ask(api, "GET", path, headers={b"range": wanted})
    assert (answer.status, answer.body) == (200, b"0123456789")


# Forms


tokens = st.sampled_from(
    [
        *(
            b'"',
            b"'",
            b";",
            b"=",
            b"\\",
            b"../",
            b"..\\",
            b"filename",
            b"filename*",
            b"name",
            b"file",
            b"purpose",
            b"batch",
        ),
        *(b"UTF-8''", b"utf-16''", b"xyz''", b"%0d%0a", b"%ff", b"\x00", b"\t", b"\xff", b"\xe2\x80\xa8", b" ", b"*0"),
        *(b"; ", b'; filename="', b"; filename*=UTF-8''%e2%80%ae", b"\r\n", b"\r\nContent-Disposition: ", b"x" * 3000),
    ]
)
dispositions = st.lists(tokens | st.binary(max_size=4), max_size=8).map(b"".join)


@shared_api
@given(dispositions, st.integers(1, 70))
@example(b"; filename*=xyz''a", 7)
@example(b"; filename*=''", 7)
@example(b'; filename="../../../etc/passwd"', 7)
@example(b"; filename*=UTF-8''a%0d%0ax:%20y", 7)
@example(b'; filename="C:\\\\x\\\\"', 7)
@example(b"; filename*0=a; filename*1=b", 7)
async def test_any_disposition_of_a_part(api: Api, disposition: bytes, size: int) -> None:
    before = api.stored()
    body = (
        b'--b0\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b0\r\nContent-Disposition: form-data; name="file"' + disposition + b"\r\n\r\n{}\n\r\n--b0--\r\n"
    )
    headers = {b"content-type": b"multipart/form-data; boundary=b0"}
    answer = await ask(api, "POST", b"/v1/files", body=chunked(body, size), headers=headers)
    if answer.status != 200:
        refused(answer, 400)
        assert api.stored() == before
        return
    stored = json.loads(answer.body)
    assert stored["filename"]
    assert len(api.stored()) == len(before) + 3  # content, record and its place in the index: nothing elsewhere
    content = await ask(api, "GET", f"/v1/files/{stored['id']}/content".encode())
    assert content.headers["content-disposition"].isprintable()
    assert content.headers["content-disposition"].startswith('attachment; filename="')
    assert content.headers["content-length"] == str(len(content.body))


@shared_api
@given(st.binary(max_size=80) | st.lists(tokens, max_size=8).map(b"".join))
@example(b"multipart/form-data; boundary*=xyz''b0")
@example(b"multipart/form-data; boundary*=UTF-8''%ff")
@example(b"multipart/form-data; boundary*0=b; boundary*1=0")
async def test_any_content_type_of_a_form(api: Api, kind: bytes) -> None:
    body, _ = form(field("purpose", "batch"), file(b"{}"))
    before = api.stored()
    answer = await ask(api, "POST", b"/v1/files", body=body, headers={b"content-type": kind})
    if answer.status != 200:
        refused(answer, 400)
        assert api.stored() == before


@shared_api
@given(st.lists(st.tuples(st.sampled_from(["anchor", "seconds", "", "x"]), texts), max_size=3), texts | values)
@example([("anchor", "created_at"), ("seconds", "9" * 10_000)], None)
@example([], '{"anchor":"created_at","seconds":1e400}')
@example([], '{"anchor":"\\ud800","seconds":3600}')
@example([], "[" * 20_000)
async def test_any_lifetime_of_a_file(api: Api, brackets: list[tuple[str, str]], policy: Any) -> None:
    before = api.stored()
    text = policy if isinstance(policy, str) else json.dumps(policy)
    parts = [field("purpose", "batch"), file(b"{}")]
    parts += [
        (f'Content-Disposition: form-data; name="expires_after[{name}]"', value.encode("utf-8", "surrogatepass"))
        for name, value in brackets
    ]
    if policy is not None:
        parts.append(
            ('Content-Disposition: form-data; name="expires_after"', text.encode("utf-8", "surrogatepass")),
        )
    body, headers = form(*parts)
    kind = {b"content-type": headers["content-type"].encode()}
    answer = await ask(api, "POST", b"/v1/files", body=body, headers=kind)
    if answer.status != 200:
        refused(answer, 400)
        assert api.stored() == before


@pytest.mark.parametrize(
    "piece",
    [b"x" * MEGABYTE, b"--b0\r\n" * 100_000, b"\r\n--b" * 200_000, b"--b0\r\nX-" + b"a" * MEGABYTE, b"\r" * MEGABYTE],
    ids=["preamble", "parts", "almost boundaries", "a header without end", "returns"],
)
@pytest.mark.parametrize(
    "start", [b"", b'--b0\r\nContent-Disposition: form-data; name="file"\r\n\r\n'], ids=["first", "in a file"]
)
async def test_200_mb_of_nonsense_cost_no_memory(tmp_path: Path, piece: bytes, start: bytes) -> None:
    api = open_api(tmp_path, max_file_bytes=200 * MEGABYTE)

    async def body() -> AsyncIterator[bytes]:
        yield start
        for _ in range(max(1, (201 if start and piece[:1] == b"x" else 8) * MEGABYTE // len(piece))):
            yield piece

    headers = {b"content-type": b"multipart/form-data; boundary=b0"}
    with at_most(30):
        refused(await ask(api, "POST", b"/v1/files", body=body(), headers=headers), 400, 413)
    assert api.stored() == []


# Beside the routes


async def test_invented_methods_are_not_counted_each(api: Api) -> None:
    for number in range(20):
        refused(await ask(api, f"X{number}", b"/v1/files"), 405)
    metrics = (await ask(api, "GET", b"/metrics")).body
    assert b'method="other",route="/v1/files"' in metrics
    assert b"X1" not in metrics


@pytest.mark.parametrize(
    ("models", "status"),
    [
        (b'[{"id":[]},{"id":{}},{"id":7},{},7,null,{"id":"m","x":"\\ud800"}]', 200),
        (b'[{"id":"m","x":NaN}]', 502),
        (b'[{"id":"m","x":1e999}]', 502),
        (b'[{"id":"m","x":' + b"9" * 5000 + b"}]", 502),
        (b"[" * 100_000, 502),
        (b"\xff", 502),
    ],
    ids=["ids", "NaN", "infinity", "digits", "nesting", "no utf-8"],
)
async def test_models_that_an_engine_made_up(api: Api, models: bytes, status: int) -> None:
    api.models.answer = (200, b'{"data":%b}' % models)
    answer = await ask(api, "GET", b"/v1/models")
    if status == 200:
        assert [model["id"] for model in json.loads(answer.body)["data"]] == ["m"]
    else:
        refused(answer, status)
