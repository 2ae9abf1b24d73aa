"""What goes out to an engine: address, headers and body, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from activities.inference import Answer, InferenceClient, Verdict
from activities.upstreams import Upstream

CHAT = "/v1/chat/completions"
BIG = 123456789012345678901234567890
BODY = f' {{"model" : "m",\n "seed":{BIG}, "t":1.0, "é":"\\u00e9", "x": {{"b":1,  "a":[ ]}} }} '.encode()


@dataclass
class Recorder:
    """A server that answers everything alike, and what it was asked."""

    url: str = ""
    paths: list[str] = field(default_factory=list[str])
    bodies: list[bytes] = field(default_factory=list[bytes])
    headers: dict[str, str] = field(default_factory=dict[str, str])

    async def handle(self, request: web.Request) -> web.Response:
        self.paths.append(request.raw_path)
        if request.path.startswith("/moved/"):
            raise web.HTTPTemporaryRedirect("/v1/models")
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


async def send(server: Recorder, body: bytes = BODY, endpoint: str = CHAT, base: str = "/v1", **more: Any) -> Answer:
    client = InferenceClient(Upstream(name="u", urls=(server.url + base,), **more))
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
        assert (await client.send(CHAT, BODY)).verdict is Verdict.UNREACHABLE
    finally:
        await client.close()
    assert server.paths == ["/moved/models", "/moved/chat/completions"]
