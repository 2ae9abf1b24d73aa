"""Who may come in: both headers, OpenAI's words for those who may not, and nothing read of what they send."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from starlette.types import Message

from activities.settings import Settings
from api.http.auth import REFUSED_BYTES
from api.processes.run import StartError, open_keys
from api.tenants.key_editing import create_key, revoke_key
from api.tenants.keys import KeyFile
from tests.fakes.api import Api, error_of, open_api

OPEN = ("/health", "/ready")
NO_KEY = {
    "message": "You didn't provide an API key. You need to provide your API key in an Authorization header using "
    "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
    "type": "invalid_request_error",
    "param": None,
    "code": None,
}
BAD_KEY = {
    "message": "Incorrect API key provided.",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_api_key",
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0  # so that each request looks at the file
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture
def key(path: Path) -> str:
    return create_key(path, "search")[1]


@pytest.fixture
def api(tmp_path: Path, path: Path, key: str) -> Api:
    return open_api(tmp_path / "store", KeyFile(path, Clock()))


async def get(api: Api, url: str = "/v1/files", **headers: str) -> Any:
    return await api.http.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_bearer_key(api: Api, key: str, scheme: str) -> None:
    answer = await get(api, authorization=f"{scheme} {key}")
    assert answer.status_code == 200
    assert answer.headers["openai-organization"] == "search"


async def test_a_key_as_azure_clients_send_it(api: Api, key: str) -> None:
    assert (await get(api, api_key=key)).status_code == 200
    assert (await get(api, "/v1/files?api-version=2024-10-21", api_key=key)).status_code == 200
    assert (await get(api, api_key=key, authorization="Basic eDp5")).status_code == 200
    assert error_of(await get(api, api_key=key + "x")) == BAD_KEY
    # A wrong bearer key is not mended by a right one elsewhere.
    assert error_of(await get(api, api_key=key, authorization="Bearer x")) == BAD_KEY


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer "}, {"authorization": "Basic eDp5"}, {"api_key": ""}]
)
async def test_no_key(api: Api, headers: dict[str, str]) -> None:
    answer = await get(api, **headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(answer) == NO_KEY


async def test_a_bad_key(api: Api, key: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for bad in ("nonsense", key[:-1], key + "x", key.upper(), "\xff\xfe", "x" * 60_000):
            answer = await api.http.get("/v1/files", headers=[(b"authorization", f"Bearer {bad}".encode("latin-1"))])
            assert answer.status_code == 401
            assert error_of(answer) == BAD_KEY
    assert key[:-1] not in caplog.text
    assert "nonsense" not in caplog.text


async def test_clients_see_an_authentication_error(api: Api, key: str) -> None:
    assert (await api.openai.with_options(api_key=key).files.list()).data == []
    with pytest.raises(openai.AuthenticationError) as caught:
        await api.openai.with_options(api_key="other").files.list()
    assert caught.value.code == "invalid_api_key"


async def test_every_route_below_v1_needs_a_key_and_no_other(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answer = await api.http.request(method, path)
            if path.startswith("/v1/"):
                assert answer.status_code == 401, path
                assert operation["security"] == [{"bearer": []}, {"api-key": []}, {"x-api-key": []}], path
            else:
                assert answer.status_code != 401, path
                assert "security" not in operation, path
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    assert (schemes["api-key"]["in"], schemes["api-key"]["name"]) == ("header", "api-key")


@pytest.mark.parametrize("url", ["/v1", "/v1/", "/v1/nothing", "/v1//files", "/v1/files/"])
async def test_a_stranger_does_not_learn_which_routes_there_are(api: Api, key: str, url: str) -> None:
    assert (await get(api, url)).status_code == 401
    answer = await get(api, url, authorization=f"Bearer {key}")
    assert answer.status_code == 404
    assert error_of(answer)["message"].startswith("Invalid URL (GET /")


@pytest.mark.parametrize(
    "url", ["/V1/files", "//v1/files", "/%2Fv1/files", "/v1%2Ffiles", "/x/../v1/files", "/v1files"]
)
async def test_no_other_spelling_gets_past(api: Api, url: str) -> None:
    received: list[Message] = []

    async def send(message: Message) -> None:
        received.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": unquote(url), "raw_path": url.encode(), "query_string": b""}
    await api.app({**scope, "headers": [], "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
    assert received[0]["status"] in (401, 404)


async def test_nothing_of_a_strangers_body_is_read_before_the_answer(api: Api) -> None:
    events: list[str] = []

    async def receive() -> Message:
        events.append("receive")
        return {"type": "http.request", "body": b"x" * 65536, "more_body": True}

    async def send(message: Message) -> None:
        events.append(f"{message['type']} {len(message.get('body', b''))} {message.get('more_body', '')}")
        if message["type"] == "http.response.start":
            assert message["status"] == 401
            assert (b"connection", b"close") in message["headers"]

    headers = [(b"content-length", b"500000000"), (b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "raw_path": b"/v1/files", "query_string": b""}
    await api.app({**scope, "headers": headers, "http_version": "1.1", "root_path": ""}, receive, send)
    body = len(json.dumps({"error": NO_KEY}, separators=(",", ":")))
    assert events[:2] == ["http.response.start 0 ", f"http.response.body {body} True"]
    assert events[-1] == "http.response.body 0 False"
    assert set(events[2:-1]) == {"receive"}
    assert len(events[2:-1]) * 65536 <= REFUSED_BYTES + 65536
    assert api.stored() == []

    # One that asks first is not told to go on.
    events.clear()
    await api.app(
        {**scope, "headers": [*headers, (b"expect", b"100-continue")], "http_version": "1.1", "root_path": ""},
        receive,
        send,
    )
    assert "receive" not in events


async def test_a_refused_create_reads_as_any_error(api: Api) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"

    answer = await api.http.post("/v1/batches", content=body())
    assert error_of(answer) == NO_KEY


async def test_a_second_key_then_the_first_revoked(api: Api, path: Path, key: str) -> None:
    second = create_key(path, "search")
    uploaded = await api.http.get("/v1/files", headers={"api-key": second[1]})
    assert uploaded.status_code == 200
    first = KeyFile(path).current().keys[0]
    revoke_key(path, first.id)
    assert error_of(await get(api, api_key=key)) == BAD_KEY
    assert (await get(api, api_key=second[1])).status_code == 200


async def test_limits_change_with_the_file(api: Api, path: Path, key: str) -> None:
    body = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    await api.http.post("/v1/batches", json=body, headers={"api-key": key})
    with path.open("a") as file:
        file.write("[tenants.search]\nmax_queued_requests = 7\nfairness_weight = 0.5\n")
    await api.http.post("/v1/batches", json=body, headers={"api-key": key})
    first, second = api.gateway.created
    assert (first.tenant, first.counts_towards_limits, first.max_queued_requests, first.fairness_weight) == (
        "search",
        True,
        None,
        1,
    )
    assert (second.tenant, second.counts_towards_limits, second.max_queued_requests, second.fairness_weight) == (
        "search",
        True,
        7,
        0.5,
    )


async def test_without_a_key_file_anyone_is_the_default_tenant(tmp_path: Path) -> None:
    api = open_api(tmp_path)
    answer = await get(api, authorization="Bearer anything")
    assert (answer.status_code, answer.headers["openai-organization"]) == (200, "default")
    assert (await get(api)).status_code == 200
    await api.http.post(
        "/v1/batches",
        json={"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    )
    (spec,) = api.gateway.created
    assert (spec.tenant, spec.counts_towards_limits, spec.max_queued_requests, spec.fairness_weight) == (
        "default",
        False,
        None,
        1,
    )
    assert not any(key.startswith("active/") for key in api.stored())


async def test_a_key_that_works_for_a_stock_client_uploads(api: Api, key: str) -> None:
    client = AsyncOpenAI(
        api_key=key,
        base_url="http://localhost/v1",
        http_client=DefaultAsyncHttpx2Client(transport=api.http._transport),  # pyright: ignore[reportPrivateUsage]
        max_retries=0,
    )
    file = await client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    assert f"files/search/{file.id}/content" in api.stored()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_this_machine_may_use_it_without_keys(host: str) -> None:
    assert open_keys(Settings.model_validate({}), host, insecure=False) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2", "example.com", "127.0.0.1.example.com", "*"])
def test_others_may_not(host: str, path: Path, key: str) -> None:
    with pytest.raises(StartError, match="--insecure") as caught:
        open_keys(Settings.model_validate({}), host, insecure=False)
    assert "\n" not in str(caught.value)
    assert open_keys(Settings.model_validate({}), host, insecure=True) is None
    keys = open_keys(Settings.model_validate({"keys_file": str(path)}), host, insecure=False)
    assert keys
    assert keys.current().tenant_of(key.encode()) == "search"


def test_a_key_file_that_cannot_be_used_keeps_the_server_from_starting(tmp_path: Path) -> None:
    for text in (None, "[[keys]]\nid = 7\n"):
        path = tmp_path / "keys.toml"
        if text:
            path.write_text(text)
        with pytest.raises(StartError, match="EVERBATCH_KEYS_FILE") as caught:
            open_keys(Settings.model_validate({"keys_file": str(path)}), "127.0.0.1", insecure=True)
        assert "\n" not in str(caught.value)
        assert ("line 2" in str(caught.value)) == (text is not None)
