"""Each condition of the contract's table of errors, and what every answer carries."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.types import Message

from activities.store.local import LocalStore
from activities.store.object_store import ObjectNotFoundError, StoreError
from api.http.bodies import JSON_LIMIT
from api.http.metrics import ApiMetrics
from api.http.middleware import RequestMiddleware
from tests.fakes.api import Api, chunked, error_of, field, file, form, open_api
from tests.fakes.gateway import FakeGateway
from workflows.ids import BatchRef
from workflows.types import BatchPhase, BatchStatus

GOOD: dict[str, Any] = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path, completion_windows="24h,5s")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """For tests of many rows that leave nothing in it: to make one takes longer than most of them."""
    return open_api(tmp_path_factory.mktemp("shared"), completion_windows="24h,5s")


async def refused(api: Api, **changes: Any) -> dict[str, Any]:
    """The error of a create whose parameters are good but for the changes; ``...`` leaves one out."""
    body = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    response = await api.http.post("/v1/batches", content=json.dumps(body).encode(), headers=JSON)
    assert response.status_code == 400
    assert api.gateway.created == []
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("name", ["input_file_id", "endpoint", "completion_window"])
async def test_missing_field(shared: Api, name: str) -> None:
    error = await refused(shared, **{name: ...})
    assert error["message"] == f"Missing required parameter: '{name}'."
    assert (error["code"], error["param"]) == ("missing_required_parameter", name)


async def test_bad_window(api: Api) -> None:
    error = await refused(api, completion_window="1h")
    assert error["message"] == "Invalid value: '1h'. Supported values are: '24h' and '5s'."
    assert (error["code"], error["param"]) == ("invalid_value", "completion_window")


async def test_bad_endpoint(api: Api) -> None:
    error = await refused(api, endpoint="/v1/score")
    assert error["message"].startswith("Invalid value: '/v1/score'. Supported values are: '/v1/responses', ")
    assert error["message"].endswith("'/v1/videos' and '/v1/messages'.")
    assert (error["code"], error["param"]) == ("invalid_value", "endpoint")


@pytest.mark.parametrize(
    ("changes", "param", "expected", "got"),
    [
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "a string", "an array"),
        ({"metadata": {"n": 7}}, "metadata.n", "a string", "an integer"),
        ({"metadata": {"n": None}}, "metadata.n", "a string", "null"),
        ({"metadata": ["a"]}, "metadata", "an object", "an array"),
        ({"metadata": "a"}, "metadata", "an object", "a string"),
        ({"input_file_id": 5}, "input_file_id", "a string", "an integer"),
        ({"input_file_id": None}, "input_file_id", "a string", "null"),
        ({"endpoint": True}, "endpoint", "a string", "a boolean"),
        ({"endpoint": ["x"]}, "endpoint", "a string", "an array"),
        ({"completion_window": 24}, "completion_window", "a string", "an integer"),
        ({"output_expires_after": 3600}, "output_expires_after", "an object", "an integer"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": "3600"}},
            "output_expires_after.seconds",
            "an integer",
            "a string",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3600.5}},
            "output_expires_after.seconds",
            "an integer",
            "a decimal number",
        ),
        ({"idempotency_key": 1}, "idempotency_key", "a string", "an integer"),
    ],
)
async def test_bad_type(shared: Api, changes: dict[str, Any], param: str, expected: str, got: str) -> None:
    error = await refused(shared, **changes)
    assert error["message"] == f"Invalid type for '{param}': expected {expected}, but got {got} instead."
    assert (error["code"], error["param"]) == ("invalid_type", param)


@pytest.mark.parametrize(
    ("changes", "code", "param", "pattern"),
    [
        (
            {"metadata": {str(number): "" for number in range(17)}},
            "object_above_max_properties",
            "metadata",
            r"^Invalid 'metadata': too many properties\. Expected .* at most 16 .*, but got .* 17 ",
        ),
        ({"metadata": {"k" * 65: ""}}, "property_name_above_max_length", "metadata", "64.* 65 "),
        ({"metadata": {"k": "v" * 513}}, "string_above_max_length", "metadata.k", "512.* 513 "),
        ({"metadata": {"k": "\ud800"}}, "invalid_value", "metadata.k", "Unicode"),
        ({"input_file_id": ""}, "empty_string", "input_file_id", "minimum length 1"),
        ({"input_file_id": "x" * 256}, "string_above_max_length", "input_file_id", "255"),
        ({"idempotency_key": ""}, "empty_string", "idempotency_key", "minimum length 1"),
        ({"idempotency_key": "x" * 256}, "string_above_max_length", "idempotency_key", "255"),
        ({"output_expires_after": {}}, "missing_required_parameter", "output_expires_after.anchor", "anchor"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            "integer_below_min_value",
            "output_expires_after.seconds",
            ">= 3600, but got 3599 instead",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
            "integer_above_max_value",
            "output_expires_after.seconds",
            "<= 2592000, but got 2592001 instead",
        ),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            "invalid_value",
            "output_expires_after.anchor",
            "^Invalid value: 'now'. Supported values are: 'created_at'.$",
        ),
    ],
)
async def test_out_of_bounds(shared: Api, changes: dict[str, Any], code: str, param: str, pattern: str) -> None:
    error = await refused(shared, **changes)
    assert (error["code"], error["param"]) == (code, param)
    assert re.search(pattern, error["message"])


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
@pytest.mark.parametrize(
    ("limit", "code", "text"),
    [
        ("10001", "integer_above_max_value", "integer above maximum value. Expected a value <= "),
        ("0", "integer_below_min_value", "integer below minimum value. Expected a value >= 1, but got 0 instead."),
        ("-3", "integer_below_min_value", "but got -3 instead."),
        ("ten", "invalid_type", "expected an integer, but got a string instead."),
        ("9" * 5000, None, "'limit'"),
    ],
)
async def test_bad_limit(shared: Api, path: str, limit: str, code: str | None, text: str) -> None:
    response = await shared.http.get(path, params={"limit": limit})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == "limit"
    assert code is None or error["code"] == code
    assert text in error["message"]
    assert len(error["message"]) < 300


async def test_limit_of_batches_in_the_words_of_the_contract(api: Api) -> None:
    error = error_of(await api.http.get("/v1/batches?limit=101"))
    text = "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead."
    assert error["message"] == text


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
async def test_bad_order(shared: Api, path: str) -> None:
    error = error_of(await shared.http.get(f"{path}?order=up"))
    assert error["message"] == "Invalid value: 'up'. Supported values are: 'asc' and 'desc'."
    assert (error["code"], error["param"]) == ("invalid_value", "order")


async def test_unknown_routes_and_methods(api: Api) -> None:
    response = await api.http.post("/v1/x")
    assert response.status_code == 404
    assert error_of(response)["message"] == "Invalid URL (POST /v1/x)"
    response = await api.http.get("/v1/files/")
    assert error_of(response)["message"] == "Invalid URL (GET /v1/files/)"
    for path in ("/files", "/v1/v1/files", "/batches/batch_1"):  # a base URL without /v1, or with two
        message = error_of(await api.http.get(path))["message"]
        assert message.startswith(f"Invalid URL (GET {path}). The paths of this API begin with /v1 once")
    response = await api.http.put("/v1/files")
    assert response.status_code == 405
    assert error_of(response)["code"] is None


async def test_unknown_ids(api: Api) -> None:
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/content")]:
        response = await api.http.request(method, f"/v1/files/file-x{path}")
        assert response.status_code == 404
        error = error_of(response)
        assert (error["message"], error["param"], error["code"]) == ("No such File object: file-x", "id", None)
    for method, path in [("GET", ""), ("POST", "/cancel")]:
        response = await api.http.request(method, f"/v1/batches/batch_x{path}")
        assert response.status_code == 404
        error = error_of(response)
        assert (error["message"], error["param"]) == ("No batch found with id 'batch_x'.", None)


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fx", "a.b", "%00", "x" * 500, "%F0%9F%98%80"])
async def test_ids_that_could_not_be(shared: Api, name: str) -> None:
    assert (await shared.http.get(f"/v1/files/{name}")).status_code == 404
    assert (await shared.http.get(f"/v1/batches/{name}/cancel")).status_code in (404, 405)
    assert (await shared.http.get(f"/v1/files?after={name}")).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{'a':1}",
        b"[" * 100_000,
        b'"\xff"',
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"",
        b'{"completion_window":' + b"9" * 5000 + b"}",
        b"\x00",
    ],
)
async def test_bodies_that_are_no_object(shared: Api, body: bytes) -> None:
    response = await shared.http.post("/v1/batches", content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["message"]


async def test_json_sent_as_something_else(api: Api) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = await api.http.post("/v1/batches", content=json.dumps(GOOD).encode(), headers=headers)
    assert response.status_code == 400
    assert "application/json" in error_of(response)["message"]


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
@pytest.mark.parametrize("declared", [False, True])
async def test_a_body_that_is_too_large(shared: Api, kind: str, declared: bool) -> None:
    body = json.dumps(GOOD | {"padding": "x" * JSON_LIMIT}).encode()
    content = body if declared else chunked(body, 64 * 1024)
    response = await shared.http.post("/v1/batches", content=content, headers={"content-type": kind})
    assert response.status_code == 413
    assert str(JSON_LIMIT) in error_of(response)["message"]


async def test_cancel_of_a_batch_that_has_ended(api: Api) -> None:
    batch = await api.openai.batches.create(**GOOD)
    view = await api.gateway.find(BatchRef("default", batch.id))
    api.gateway.set_status(view.record, BatchStatus(phase=BatchPhase.COMPLETED))
    response = await api.http.post(f"/v1/batches/{batch.id}/cancel")
    assert response.status_code == 409
    assert response.headers["x-should-retry"] == "false"
    error = error_of(response)
    assert error["message"] == "Cannot cancel a batch with status 'completed'."
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", None, None)


async def test_temporal_away(api: Api) -> None:
    api.gateway.down = True
    response = await api.http.post("/v1/batches", json=GOOD)
    assert response.status_code == 503
    assert 0 < int(response.headers["retry-after"]) <= 60
    assert "127.0.0.1" not in error_of(response)["message"]


async def test_store_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise StoreError("the store failed at files/secret: Input/output error")

    monkeypatch.setattr(api.store, "get", fail)
    monkeypatch.setattr(api.store, "list", fail)
    for path in ["/v1/files", "/v1/files/file-x", "/v1/batches", "/v1/batches/batch_x"]:
        response = await api.http.get(path)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"
        assert "secret" not in error_of(response)["message"]


async def test_what_goes_while_a_route_works_is_404(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise ObjectNotFoundError("key")

    monkeypatch.setattr(api.store, "list", gone)
    response = await api.http.get("/v1/files")
    assert response.status_code == 404
    error_of(response)


async def test_a_bug_is_500_without_internals(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("internal words")

    monkeypatch.setattr(api.gateway, "create", fail)
    response = await api.http.post("/v1/batches", json=GOOD | {"metadata": {"k": "a client's words"}})
    assert response.status_code == 500
    error = error_of(response)
    assert error["type"] == "server_error"
    assert "internal" not in response.text
    assert "ZeroDivisionError" in caplog.text
    assert response.headers["x-request-id"] in caplog.text
    assert "a client's words" not in caplog.text


async def test_the_stock_client_reads_the_errors(api: Api) -> None:
    arguments: dict[str, Any] = GOOD | {"completion_window": "1h"}
    with pytest.raises(openai.BadRequestError) as caught:
        await api.openai.batches.create(**arguments)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "completion_window")
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id is not None
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        await api.openai.files.retrieve("file-x")


# What every answer carries


async def test_headers_of_every_answer(api: Api) -> None:
    body, headers = form(field("purpose", "batch"), file(b"{}"))
    answers = [
        await api.http.post("/v1/files", content=body, headers=headers),
        await api.http.get("/v1/files"),
        await api.http.get("/v1/models"),
        await api.http.get("/health"),
        await api.http.get("/ready"),
        await api.http.get("/openapi.json"),
        await api.http.get("/nowhere"),
        await api.http.put("/v1/files"),
        await api.http.post("/v1/batches", content=b"{", headers=JSON),
        await api.http.post("/v1/batches", content=b"x" * (JSON_LIMIT + 1), headers=JSON),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 200, 200, 404, 405, 400, 413]
    for answer in answers:
        assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["openai-processing-ms"].isdigit()
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


@pytest.mark.parametrize(
    ("value", "status"), [("a" * 512, 200), ("a" * 513, 400), ("ä", 400), ("", 200), ("\x1b[2J", 400)]
)
async def test_client_request_id(shared: Api, value: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        response = await shared.http.get("/v1/files", headers=[(b"X-Client-Request-Id", value.encode("latin-1"))])
    assert response.status_code == status
    if status == 400:
        error_of(response)
        assert value not in caplog.text
    else:
        assert value in caplog.text


async def test_a_request_that_a_stopping_server_cancels_gets_the_advice_to_try_again() -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise NotImplementedError

    app = RequestMiddleware(never, ApiMetrics(FakeGateway(LocalStore("/nowhere"))))
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/files", "headers": []}
    request = asyncio.create_task(app(scope, receive, send))
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"5") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["type"] == "server_error"


async def test_one_line_of_log_for_a_request(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        response = await api.http.get("/v1/files?purpose=secret")
        await api.http.get("/health")
        await api.http.get("/ready")
        await api.http.get("/v1/files/a%0Ab")
    lines = [record.getMessage() for record in caplog.records if record.name == "everbatch.api"]
    assert len(lines) == 2
    assert re.fullmatch(rf"GET /v1/files 200 \d+ ms {response.headers['x-request-id']}", lines[0])
    assert lines[1].startswith("GET /v1/files/a%0Ab 404 ")


# Models and health


async def test_models(api: Api) -> None:
    assert [model.id for model in (await api.openai.models.list()).data] == ["org/m"]
    assert (await api.openai.models.retrieve("org/m")).id == "org/m"
    with pytest.raises(openai.NotFoundError) as caught:
        await api.openai.models.retrieve("org/n")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("answer", "status"),
    [(None, 503), ((401, b"{}"), 502), ((200, b"<html>"), 502), ((200, b"[]"), 502), ((200, b'{"data":{}}'), 502)],
)
async def test_models_of_an_upstream_that_fails(api: Api, answer: tuple[int, bytes] | None, status: int) -> None:
    api.models.answer = answer
    for path in ["/v1/models", "/v1/models/m"]:
        response = await api.http.get(path)
        assert response.status_code == status
        assert "10.0.0.1" not in error_of(response)["message"]
        assert ("retry-after" in response.headers) == (status == 503)


async def test_health_asks_nobody(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.store, "check", None)
    response = await api.http.get("/health")
    assert (response.status_code, response.content) == (200, b"")


async def test_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    response = await api.http.get("/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})

    def fail() -> None:
        raise StoreError("it is full")

    monkeypatch.setattr(api.store, "check", fail)
    api.gateway.misses = ["no worker is polling task queue everbatch"]
    response = await api.http.get("/ready")
    assert response.status_code == 503
    assert response.json() == {
        "status": "not ready",
        "missing": ["the file store cannot be used: it is full", "no worker is polling task queue everbatch"],
    }


KEY = {"authorization": "Bearer none"}


async def test_files_are_for_any_origin_that_has_a_key(api: Api) -> None:
    for path in ("/v1/files", "/v1/files/file-x", "/v1/files/file-x/content"):
        for key in (KEY, {"api-key": "none"}):
            assert (await api.http.get(path, headers=key)).headers["access-control-allow-origin"] == "*"
        # Without a key any web page could read what a server on this machine holds.
        assert "access-control-allow-origin" not in (await api.http.get(path)).headers


async def test_nothing_but_files_is_for_any_origin(api: Api) -> None:
    for path in ("/v1/batches", "/v1/models", "/v1/filesystem", "/health", "/openapi.json"):
        assert "access-control-allow-origin" not in (await api.http.get(path, headers=KEY)).headers


async def test_browsers_that_ask_first_get_no_leave(api: Api) -> None:
    headers = {"origin": "http://evil", "access-control-request-method": "GET"}
    response = await api.http.request(
        "OPTIONS", "/v1/files", headers=headers | {"access-control-request-headers": "authorization"}
    )
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


async def test_every_permanent_409_says_not_to_retry(api: Api) -> None:
    for phase in (BatchPhase.COMPLETED, BatchPhase.FAILED, BatchPhase.EXPIRED):
        batch = await api.openai.batches.create(**GOOD)
        view = await api.gateway.find(BatchRef("default", batch.id))
        api.gateway.set_status(view.record, BatchStatus(phase=phase))
        for action in ("cancel", "pause", "resume"):
            response = await api.http.post(f"/v1/batches/{batch.id}/{action}")
            assert (response.status_code, response.headers["x-should-retry"]) == (409, "false")


async def test_every_503_says_when_to_come_again_and_soon(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.gateway.down = True
    answers = [await api.http.post("/v1/batches", json=GOOD)]

    def fail(*_: Any, **__: Any) -> Any:
        raise StoreError("gone")

    for name in ("get", "list", "writer", "put"):
        monkeypatch.setattr(api.store, name, fail)
    for path in ("/v1/files", "/v1/files/file-x", "/v1/files/file-x/content", "/v1/batches", "/v1/batches/batch_x"):
        answers.append(await api.http.get(path))
    api.models.answer = None
    answers.append(await api.http.get("/v1/models"))
    for answer in answers:
        assert answer.status_code == 503
        # A client of before August 2026 honours 60 s at most, and a newer one 120.
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert "x-should-retry" not in answer.headers


async def upload(api: Api, query: str = "") -> Any:
    body, headers = form(field("purpose", "batch"), file(b"{}\n"))
    return await api.http.post(f"/v1/files{query}", content=body, headers=headers)


async def test_unknown_query_parameters_are_ignored(api: Api) -> None:
    query = "?api-version=2024-10-21&x=1&x=2"
    file_id = (await upload(api, query)).json()["id"]
    batch = await api.http.post(f"/v1/batches{query}", json=GOOD)
    batch_id = batch.json()["id"]
    answers = [batch, await api.http.post(f"/v1/batches/{batch_id}/cancel{query}")]
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", "/v1/files", "/v1/batches", "/v1/models"):
        answers.append(await api.http.get(path + query))
    answers.append(await api.http.delete(f"/v1/files/{file_id}{query}"))
    assert [answer.status_code for answer in answers] == [200] * len(answers)


async def test_ids_have_the_prefixes_and_lengths_that_clients_check(api: Api) -> None:
    assert re.fullmatch("file-[0-9A-Za-z]{24}", (await upload(api)).json()["id"])
    assert re.fullmatch("batch_[0-9a-f]{32}", (await api.http.post("/v1/batches", json=GOOD)).json()["id"])


async def test_times_are_integer_seconds_and_absent_values_null(api: Api) -> None:
    for answer in (await upload(api), await api.http.post("/v1/batches", json=GOOD)):
        values = answer.json()
        times = {name: value for name, value in values.items() if name.endswith("_at")}
        assert {type(value) for value in times.values()} <= {int, type(None)}
        assert 1_600_000_000 < values["created_at"] < 10_000_000_000


ALLOWED = {
    "/v1/files": "GET, POST",
    "/v1/files/file-x": "GET, DELETE",
    "/v1/files/file-x/content": "GET, HEAD",
    "/v1/batches": "GET, POST",
    "/v1/batches/batch_x": "GET",
    "/v1/batches/batch_x/cancel": "POST",
    "/v1/models/org/m": "GET",
}


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "HEAD"])
async def test_another_method_is_405_and_shows_which_are_allowed(api: Api, method: str) -> None:
    for path, allowed in ALLOWED.items():
        if method in allowed:
            continue
        response = await api.http.request(method, path)
        assert response.status_code == 405
        assert response.headers["allow"] == allowed
        if method != "HEAD":
            assert error_of(response)["message"] == f"Invalid method for URL ({method} {path})"


async def test_a_trailing_slash_is_another_url_and_no_redirect(api: Api) -> None:
    for path in ("/v1/files/", "/v1/batches/", "/v1/files/file-x/", "/v1/batches/batch_x/cancel/"):
        response = await api.http.post(path)
        assert response.status_code == 404
        assert error_of(response)["message"] == f"Invalid URL (POST {path})"


WRONG: dict[str, Any] = {
    # Each with an error of each kind; `...` leaves the member out.
    "input_file_id": {"missing": ..., "type": 5, "value": ""},
    "endpoint": {"missing": ..., "type": 5, "value": "/v1/x"},
    "completion_window": {"missing": ..., "type": 5, "value": "1h"},
    "metadata": {"type": [], "value": {"k": "v" * 513}},
    "output_expires_after": {"type": 5, "value": {"anchor": "created_at", "seconds": 1}},
    "idempotency_key": {"type": 5, "value": ""},
}
KINDS = ("missing", "type", "value")
FOUND_IN_TURN = [(kind, name) for kind in KINDS for name, wrong in WRONG.items() if kind in wrong]


async def test_of_several_errors_the_missing_one_is_reported_then_the_type_then_the_value(api: Api) -> None:
    """The order is ours: among errors of one kind, that of the fields of the request."""
    for index, first in enumerate(FOUND_IN_TURN):
        for second in FOUND_IN_TURN[index + 1 :]:
            if first[1] == second[1]:
                continue
            body = GOOD | {name: WRONG[name][kind] for kind, name in (second, first)}
            content = json.dumps({name: value for name, value in body.items() if value is not ...})
            response = await api.http.post("/v1/batches", content=content, headers=JSON)
            assert response.status_code == 400
            assert error_of(response)["param"].partition(".")[0] == first[1], (first, second)
    assert api.gateway.created == []


async def test_query_and_headers_are_reported_before_the_body(api: Api) -> None:
    response = await api.http.post("/v1/batches", json=GOOD | {"endpoint": "x"}, headers={"Idempotency-Key": ""})
    assert error_of(response)["param"] == "Idempotency-Key"
    response = await api.http.get("/v1/files?order=up&limit=x&after=nothing")
    assert error_of(response)["param"] == "limit"  # its type, before the value of another
    response = await api.http.get("/v1/files?order=up&limit=0&after=nothing")
    assert error_of(response)["param"] == "limit"
    response = await api.http.get("/v1/files?order=up&after=nothing")
    assert error_of(response)["param"] == "order"
    response = await api.http.get("/v1/files?after=nothing")
    assert error_of(response)["param"] == "after"


async def test_of_several_errors_of_a_form_the_missing_file_is_reported_first(
    api: Api,
) -> None:
    half = field("expires_after[anchor]", "created_at")
    for parts, param in [
        ([field("purpose", "x"), half], "file"),
        ([half, file(b"{}")], "purpose"),
        ([field("purpose", "x"), half, file(b"{}")], "expires_after.seconds"),
        ([field("purpose", "x"), field("expires_after[seconds]", "1"), half, file(b"{}")], "purpose"),
        ([field("purpose", "batch"), half, file(b"{}")], "expires_after.seconds"),
    ]:
        body, headers = form(*parts)
        response = await api.http.post("/v1/files", content=body, headers=headers)
        assert response.status_code == 400
        assert error_of(response)["param"] == param
    assert api.stored() == []
