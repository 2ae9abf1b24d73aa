"""Lines and answers that hold what text can hold: each has its result, and every reader sees the same lines."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, request

Reply = Callable[[dict[str, Any]], bytes]


def completion(content: str) -> bytes:
    answer = {"choices": [{"message": {"role": "assistant", "content": content}}], "usage": {"prompt_tokens": 1}}
    return json.dumps(answer, ensure_ascii=False).encode()


@contextlib.asynccontextmanager
async def engine(reply: Reply) -> AsyncGenerator[str]:
    """The base URL of a server that answers each body with 200 and what ``reply`` says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((line.split()[1] for line in head.lower().split(b"\r\n") if b"content-length" in line), 0)
            body = await reader.readexactly(int(length))
            answer = reply(json.loads(body)) if body else b'{"data":[{"id":"fake"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 26)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


async def test_every_way_to_cut_lines_sees_the_same_lines(stack: MakeStack) -> None:
    odd = {"a": "x\u2028y", "b": "x\u2029y", "c": "x\x85y", "d": "plain", "späte \u2028 😀": "é 😀"}
    async with engine(lambda body: completion(odd[body["user"]])) as url:
        it = await stack(upstream_url=url)
        lines = "".join(json.dumps(request(custom_id), ensure_ascii=False) + "\n" for custom_id in odd).encode()
        finished = await it.run(lines)
    assert finished.counts == (5, 5, 0)
    assert finished.raw_output.isascii()
    content = await it.openai.files.content(finished.batch.output_file_id or "")
    ways = [content.text.splitlines(), list(content.iter_lines()), content.text.strip().split("\n")]
    for found in ways:
        read = {line["custom_id"]: line["response"]["body"]["choices"][0] for line in map(json.loads, found)}
        assert {custom_id: choice["message"]["content"] for custom_id, choice in read.items()} == odd


async def test_an_error_in_a_success_ends_in_the_error_file(stack: MakeStack) -> None:
    def reply(body: dict[str, Any]) -> bytes:
        if body["user"] == "a":
            return '{"error": {"message": "Provider returned \u2028 error", "code": 400}}'.encode()
        return completion("yes")

    async with engine(reply) as url:
        it = await stack(upstream_url=url)
        finished = await it.run([request("a"), request("b")])
    assert finished.counts == (2, 1, 1)
    (line,) = finished.errors
    assert finished.raw_errors.isascii()
    assert (line["custom_id"], line["response"]["status_code"], line["error"]["code"]) == ("a", 400, "http_400")
    assert line["error"]["message"] == "Provider returned \u2028 error"


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/embeddings"])
async def test_half_of_a_surrogate_pair_fails_nothing(stack: MakeStack, endpoint: str) -> None:
    sent: list[Any] = []

    def reply(body: dict[str, Any]) -> bytes:
        sent.append(body)
        return b'{"data":[],"choices":[{"message":{"content":"half \\ud83d"}}]}'

    half: dict[str, Any] = {"input": ["\ud83d", "b"]} if endpoint != CHAT else {"messages": ["\ud83d", "x" * 5_000_000]}
    async with engine(reply) as url:
        it = await stack(upstream_url=url)
        finished = await it.run([request("id \ud83d", endpoint, **half), request("b", endpoint)], endpoint)
    assert finished.counts == (2, 2, 0)
    assert finished.answered == ["id \ufffd", "b"]
    assert finished.output[0]["response"]["body"]["choices"][0]["message"]["content"] == "half \ufffd"
    assert len(sent) == 2
    assert "\ufffd" in json.dumps(sent, ensure_ascii=False)


async def test_a_line_that_is_too_large_is_an_error_line(stack: MakeStack) -> None:
    async with engine(lambda body: completion("yes")) as url:
        it = await stack(upstream_url=url, max_line_bytes=100_000)
        long = [request(name, user="x" * 200_000) for name in ("long", "last")]
        long[1] = {"body": long[1]["body"], "custom_id": "last"}
        finished = await it.run([request("a"), long[0], request("b"), long[1]])
    assert finished.counts == (4, 2, 2)
    assert finished.answered == ["a", "b"]
    assert finished.refused == ["long", None]  # an id that stands behind all of that is not seen
    assert {line["error"]["code"] for line in finished.errors} == {"line_too_large"}
    assert "EVERBATCH_MAX_LINE_BYTES" in finished.errors[0]["error"]["message"]


async def test_a_line_of_20_mb_between_two_small_ones(stack: MakeStack) -> None:
    async with engine(lambda body: completion(str(len(body["user"])))) as url:
        it = await stack(upstream_url=url)
        finished = await it.run([request("a"), request("large", user="x" * 20_000_000), request("b")])
    assert finished.counts == (3, 3, 0)
    assert finished.output[1]["response"]["body"]["choices"][0]["message"]["content"] == "20000000"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (codecs.BOM_UTF16_LE + (json.dumps(request("a")) + "\n").encode("utf-16-le") * 3, "UTF-16"),
        ((json.dumps(request("é"), ensure_ascii=False) + "\n").encode("cp1252") * 3, "cp1252"),
    ],
    ids=["utf-16", "cp1252"],
)
async def test_a_wrong_encoding_is_named_in_one_error(stack: MakeStack, data: bytes, name: str) -> None:
    it = await stack()
    finished = await it.run(data)
    assert finished.batch.status == "failed"
    assert finished.batch.errors
    assert finished.batch.errors.data
    (error,) = finished.batch.errors.data
    assert error.message
    assert name in error.message
    assert "UTF-8" in error.message
