"""What goes out to an engine: address, headers and body, byte for byte."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from activities.upstreams.answers import Answer, Verdict
from activities.upstreams.client import METRICS_BYTES, InferenceClient
from activities.upstreams.config import Upstream
from activities.upstreams.first_look import log_upstreams

CHAT = "/v1/chat/completions"
BIG = 123456789012345678901234567890
BODY = f' {{"model" : "m",\n "seed":{BIG}, "t":1.0, "é":"\\u00e9", "x": {{"b":1,  "a":[ ]}} }} '.encode()


@dataclass
class Recorder:
    """A server that answers everything alike, and what it was asked."""

    url: str = ""
    key: str = ""
    """Of the Authorization header; without it, 401."""
    paths: list[str] = field(default_factory=list[str])
    bodies: list[bytes] = field(default_factory=list[bytes])
    headers: dict[str, str] = field(default_factory=dict[str, str])

    async def handle(self, request: web.Request) -> web.Response:
        self.paths.append(request.raw_path)
        if request.path.startswith("/moved/"):
            raise web.HTTPTemporaryRedirect("/v1/models")
        if request.path.startswith("/large/"):
            return web.Response(body=bytes(METRICS_BYTES + 1))
        if request.path.startswith("/missing/"):
            raise web.HTTPNotFound
        if self.key and request.headers.get("Authorization") != self.key:
            raise web.HTTPUnauthorized
        self.bodies.append(await request.read())
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        return web.json_response({"data": [{"id": "m"}]})


@pytest.fixture
async def server() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", recorder.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    recorder.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield recorder
    await runner.cleanup()


async def send(
    server: Recorder,
    body: bytes = BODY,
    endpoint: str = CHAT,
    base: str = "/v1",
    body_of_settings: dict[str, Any] | None = None,
    **more: Any,
) -> Answer:
    client = InferenceClient(Upstream(name="u", urls=(server.url + base,), body=body_of_settings or {}, **more))
    try:
        return await client.send(endpoint, body)
    finally:
        await client.close()
        await asyncio.sleep(0)


async def test_plain_sends_the_bodys_own_bytes(server: Recorder) -> None:
    answer = await send(server, key=SecretStr("k"), headers={"X-Team": SecretStr("search")})
    assert answer.verdict is Verdict.SUCCESS
    assert (server.paths, server.bodies) == (["/v1/chat/completions"], [BODY])
    assert server.headers["user-agent"] == f"everbatch/{version('everbatch')}"
    assert (server.headers["authorization"], server.headers["x-team"]) == ("Bearer k", "search")
    assert server.headers["content-type"] == "application/json"


async def test_without_a_key_there_is_no_key_header(server: Recorder) -> None:
    await send(server)
    assert "authorization" not in server.headers


async def test_a_header_of_the_file_takes_the_place_of_ours(server: Recorder) -> None:
    await send(
        server, key=SecretStr("k"), headers={"authorization": SecretStr("Basic x"), "USER-AGENT": SecretStr("me")}
    )
    assert (server.headers["authorization"], server.headers["user-agent"]) == ("Basic x", "me")


async def test_an_alias_changes_the_model_and_nothing_else(server: Recorder) -> None:
    await send(server, aliases={"m": 'org/"m"'})
    expected = f'{{"model":"org/\\"m\\"","seed":{BIG},"t":1.0,"é":"\\u00e9","x":{{"b":1,  "a":[ ]}}}}'
    assert server.bodies == [expected.encode()]


@pytest.mark.parametrize("body", [BODY, b'{"model":5}', b'{ "input":"x"}'])
async def test_what_has_no_alias_goes_out_as_it_came(server: Recorder, body: bytes) -> None:
    await send(server, body, aliases={"other": "n"})
    assert server.bodies == [body]


ADDED: dict[str, Any] = {"priority": 100, "x": None, "big": BIG, "é": {"y": [1.0, "\u2028"]}}


@pytest.mark.parametrize("body", [b'{"model" : "m"}', b'{"model":"m","priority":null,"x":1}', BODY])
async def test_members_of_the_settings_are_added_where_a_request_does_not_set_them(
    server: Recorder, body: bytes
) -> None:
    await send(server, body, body_of_settings=ADDED)
    (sent,) = server.bodies
    assert json.loads(sent) == ADDED | json.loads(body)
    for own in (b"1.0", b'"\\u00e9"') if body is BODY else ():
        assert own in sent


async def test_a_request_that_sets_them_all_goes_out_as_it_came(server: Recorder) -> None:
    body = b' {"priority" : 3, "model":"m"}'
    await send(server, body, body_of_settings={"priority": 100})
    assert server.bodies == [body]


async def test_added_members_are_in_the_dialect_as_if_a_client_had_set_them(server: Recorder) -> None:
    await send(server, b'{"model":"m"}', dialect="nim", aliases={"m": "n"}, body_of_settings={"top_k": 5})
    assert server.bodies == [b'{"model":"n","nvext":{"top_k":5}}']


async def test_nim(server: Recorder) -> None:
    await send(server, b'{"model":"m","top_k":4,"t":1.0}', dialect="nim", aliases={"m": "meta/m"})
    assert server.bodies == [b'{"model":"meta/m","t":1.0,"nvext":{"top_k":4}}']


async def test_azure(server: Recorder) -> None:
    more: dict[str, Any] = {"dialect": "azure", "api_version": "2024-10-21", "key": SecretStr("k"), "base": ""}
    await send(server, aliases={"m": "my gpt"}, **more)
    await send(server, **more, endpoint="/v1/embeddings")
    assert server.paths == [
        "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21",
        "/openai/deployments/m/embeddings?api-version=2024-10-21",
    ]
    assert server.headers["api-key"] == "k"
    assert "authorization" not in server.headers
    assert server.bodies[1] == BODY


@pytest.mark.parametrize("name", [".", ".."])
@pytest.mark.parametrize("aliased", [True, False])
async def test_azure_is_asked_for_no_step_of_a_path(server: Recorder, name: str, aliased: bool) -> None:
    aliases = {"m": name} if aliased else {}
    upstream = Upstream(name="u", urls=(server.url,), dialect="azure", api_version="2024-10-21", aliases=aliases)
    client = InferenceClient(upstream)
    answer = await client.send(CHAT, b'{"model":"%b"}' % (b"m" if aliased else name.encode()))
    await client.close()
    assert (answer.verdict, answer.code) == (Verdict.FINAL, "model_not_found")
    assert server.paths == []


async def test_each_replica_has_its_address_and_models_are_asked_of_the_first_that_answers(server: Recorder) -> None:
    client = InferenceClient(Upstream(name="u", urls=("http://127.0.0.1:1/v1", server.url + "/v2")))
    try:
        assert (await client.send(CHAT, BODY, 0)).verdict is Verdict.UNREACHABLE
        assert (await client.send(CHAT, BODY, 1)).verdict is Verdict.SUCCESS
        assert await client.list_models() == frozenset({"m"})
    finally:
        await client.close()
    assert server.paths == ["/v2/chat/completions", "/v2/models"]


async def test_no_redirect_is_followed_because_keys_would_follow_it(server: Recorder) -> None:
    client = InferenceClient(Upstream(name="u", urls=(server.url + "/moved",), headers={"X-Key": SecretStr("k")}))
    try:
        assert await client.list_models() is None
        assert (await client.send(CHAT, BODY)).verdict is Verdict.RETRY
    finally:
        await client.close()
    assert server.paths == ["/moved/models", "/moved/chat/completions"]


# The engine's metrics


async def metrics(url: str, **more: Any) -> bytes | None:
    client = InferenceClient(Upstream(name="u", urls=(url,), **more))
    try:
        return await client.get_metrics(0)
    finally:
        await client.close()
        await asyncio.sleep(0)


async def test_metrics_are_asked_for_without_our_key(server: Recorder) -> None:
    secrets = {"key": SecretStr("k"), "headers": {"X-Team": SecretStr("search")}}
    assert await metrics(server.url + "/v1", **secrets)
    assert not {"authorization", "x-team"} & server.headers.keys()
    assert await metrics(server.url + "/llm/v1", **secrets)
    assert await metrics(server.url + "/v1", dialect="nim")
    assert await metrics(server.url, dialect="azure", api_version="1") is None
    assert server.paths == ["/metrics", "/llm/metrics", "/v1/metrics"]


async def test_a_server_that_asks_for_a_key_before_it_tells_its_metrics_gets_it(server: Recorder) -> None:
    server.key = "Bearer k"
    assert await metrics(server.url + "/v1", key=SecretStr("k"))
    assert await metrics(server.url + "/v1", key=SecretStr("wrong")) is None
    assert len(server.paths) == 4


@pytest.mark.parametrize("path", ["/moved/v1", "/large/v1", "/missing/v1"])
async def test_metrics_that_are_elsewhere_too_large_or_missing_are_none(server: Recorder, path: str) -> None:
    assert await metrics(server.url + path, key=SecretStr("k")) is None
    assert len(server.paths) == 1


async def test_metrics_of_a_server_that_is_away_are_none() -> None:
    assert await metrics("http://127.0.0.1:9/v1") is None


async def test_each_upstream_is_logged_in_one_line(server: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "everbatch.upstreams")
    paths = {"up": "/v1", "wrong": "/missing/api", "moved": "/moved/v1"}
    upstreams = [Upstream(name=name, urls=(server.url + path,)) for name, path in paths.items()]
    upstreams.append(Upstream(name="down", urls=("http://127.0.0.1:1/v1",)))
    upstreams.append(Upstream(name="names", urls=(server.url + "/v1",), models=("m", "m-*"), aliases={"gpt": "m"}))
    upstreams.append(
        Upstream(name="shared", urls=(server.url + "/v1",), interactive_headroom=0.2, body={"priority": 100})
    )
    clients = [InferenceClient(upstream) for upstream in upstreams]
    await log_upstreams(clients)
    for client in clients:
        await client.close()
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("everbatch")]
    assert sorted(line.replace(server.url, "URL") for line in logged) == [
        'upstream "down" (http://127.0.0.1:1/v1) refuses connections; its requests wait until it answers',
        'upstream "moved" (URL/moved/v1) answered HTTP 307 Temporary Redirect, a page that is not the engine\'s; '
        "is its base URL right? Most end in /v1; its requests wait until it answers",
        'upstream "names" (URL/v1) answers; its models: m; it gets the requests for gpt, m, m-*',
        'upstream "shared" (URL/v1) answers; its models: m; 20 % of its capacity is left to its other clients; '
        'requests get {"priority": 100} where they do not set it',
        'upstream "up" (URL/v1) answers; its models: m',
        'upstream "wrong" (URL/missing/api) answered HTTP 404 Not Found, a page that is not the engine\'s; '
        "is its base URL right? Most end in /v1; its requests wait until it answers",
    ]
