"""An engine, or what poses as one, that answers what no engine should."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Iterable

import pytest

from activities.upstreams.answers import Answer, Verdict
from activities.upstreams.client import InferenceClient
from activities.upstreams.config import Upstream
from activities.upstreams.errors import UpstreamUnavailableError

MEGABYTE = 1 << 20
LIMIT = 2 * MEGABYTE
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@contextlib.asynccontextmanager
async def engine(answer: Iterable[bytes], pause: float = 0.0) -> AsyncGenerator[InferenceClient]:
    """A client of a server that writes these bytes, whatever it is asked, until the client has had enough."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in answer:
                writer.write(piece)
                await writer.drain()
                if pause:
                    await asyncio.sleep(pause)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream(name="u", urls=(f"http://127.0.0.1:{port}/v1",), timeout=3, max_answer_bytes=LIMIT)
    client = InferenceClient(upstream)
    try:
        yield client
    finally:
        await client.close()
        server.close()


async def send(answer: Iterable[bytes], pause: float = 0.0) -> Answer:
    """What the client makes of it, in 30 MB of memory and without an exception."""
    tracemalloc.start()
    try:
        async with engine(answer, pause) as client:
            result = await client.send("/v1/chat/completions", b"{}")
        assert tracemalloc.get_traced_memory()[1] < 30 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert len(result.reason) < 200
    return result


def with_length(body: bytes, headers: bytes = b"") -> list[bytes]:
    return [OK + headers + b"content-length: %d\r\n\r\n" % len(body), body]


def chunks(piece: bytes, count: int) -> Iterable[bytes]:
    yield OK + b"transfer-encoding: chunked\r\n\r\n"
    for _ in range(count):
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def until_closed(piece: bytes, count: int) -> Iterable[bytes]:
    yield OK + b"\r\n"
    for _ in range(count):
        yield piece


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return b"".join([*(packer.compress(b" " * MEGABYTE) for _ in range(megabytes)), packer.flush()])


@pytest.mark.parametrize(
    "answer",
    [
        [OK + b"content-length: 100000000\r\n\r\n", b" " * MEGABYTE, b" " * 2 * MEGABYTE],
        chunks(b" " * MEGABYTE, 100),
        until_closed(b" " * MEGABYTE, 100),
        with_length(bomb(200), b"content-encoding: gzip\r\n"),
    ],
    ids=["declared", "chunked", "until closed", "packed"],
)
async def test_an_answer_without_end_is_a_failed_attempt(answer: Iterable[bytes]) -> None:
    result = await send(answer)
    assert (result.verdict, result.code, result.body) == (Verdict.RETRY, "answer_too_large", b"")
    assert str(LIMIT) in result.message


async def test_answers_up_to_the_limit_arrive() -> None:
    body = b'{"text":"' + b"x" * (LIMIT - 11) + b'"}'
    for answer in (with_length(body), chunks(body, 1), with_length(gzip.compress(body), b"content-encoding: gzip\r\n")):
        assert (await send(answer)).body == body


async def test_an_answer_that_dribbles_ends_with_the_requests_time() -> None:
    result = await send(chunks(b" ", 1000), pause=0.01)
    assert (result.verdict, result.code) == (Verdict.TIMED_OUT, "request_timeout")


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"x-%d: y\r\n" % number for number in range(100_000)),
        b"x: " + b"y" * MEGABYTE + b"\r\n",
        b"content-length: 2\r\ncontent-length: 3\r\n",
        b"content-length: -1\r\n",
        b"content-length: 99999999999999999999\r\n",
        b"transfer-encoding: chunked, chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 2\r\n",
        b"content-encoding: gzip\r\ncontent-length: 2\r\n",
        b"content-encoding: nonsense\r\ncontent-length: 2\r\n",
        b"no colon\r\n",
        b"x: \x00\r\ncontent-length: 2\r\n",
        b"x-request-id: \xff\xfe\r\ncontent-length: 2\r\n",
        b"x-request-id: " + b"a" * 8000 + b"\r\ncontent-length: 2\r\n",
        b"set-cookie: a=b\r\nset-cookie: a=c\r\ncontent-length: 2\r\n",
    ],
    ids=lambda head: head[:40].decode("latin-1").strip(),
)
async def test_any_head_is_an_answer_or_a_failed_attempt(head: bytes) -> None:
    result = await send([OK + head + b"\r\n{}"])
    assert result.verdict in (Verdict.SUCCESS, Verdict.RETRY)
    assert (result.verdict is Verdict.SUCCESS) == (result.body == b"{}")


@pytest.mark.parametrize(
    "line",
    [b"HTTP/1.1 200", b"HTTP/9.9 200 OK", b"HTTP/1.1 99999 x", b"200", b"\x00\xff", b"x" * MEGABYTE, b"HTTP/1.1 -1"],
)
async def test_what_is_no_http_is_a_failed_attempt(line: bytes) -> None:
    result = await send([line + b"\r\ncontent-length: 2\r\n\r\n{}"])
    assert result.verdict in (Verdict.SUCCESS, Verdict.RETRY)


@pytest.mark.parametrize(
    "usage",
    [
        "9" * 5000,
        "-1",
        "[" * 2000 + "]" * 2000,
        '"7"',
        '{"prompt_tokens":%s}' % ("9" * 5000),
        '{"prompt_tokens":-5,"completion_tokens":1e400}',
        '{"prompt_tokens":"7","prompt_tokens_details":[]}',
        '{"prompt_tokens":18446744073709551615}',
        '{"prompt_tokens":true}',
        '{"a":"\\ud800\\u0000\u2028"}',
    ],
    ids=range(10),
)
@pytest.mark.parametrize("status", [200, 400])
async def test_a_usage_that_is_nonsense_is_not_counted(usage: str, status: int) -> None:
    body = b'{"usage":%b,"choices":[],"error":{"message":"no","code":%b}}' % (usage.encode(), usage.encode())
    result = await send([b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)])
    assert result.usage is None or sum(result.usage.model_dump().values()) < 10
    # Nested too deeply to be read again by those who get the results.
    is_refused = usage.startswith("[[")
    assert result.verdict is (Verdict.RETRY if is_refused else Verdict.SUCCESS if status == 200 else Verdict.FINAL)
    assert (is_refused and status == 200) or isinstance(json.loads(result.body, parse_int=str), dict)


@pytest.mark.parametrize(
    "value", ["-1", "1e400", "nan", "99999999999999", "Mon, 99 Foo 9999 99:99:99", "\xb2", "1, 2", ""]
)
@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms"])
async def test_a_retry_after_that_is_nonsense_is_bounded(name: str, value: str) -> None:
    head = f"HTTP/1.1 503 x\r\n{name}: {value}\r\n{name}: 7000000000\r\ncontent-length: 0\r\n\r\n"
    result = await send([head.encode("latin-1")])
    assert result.verdict is Verdict.OVERLOADED
    assert result.retry_after is None or 0 < result.retry_after <= 900


async def test_a_list_of_models_without_end_is_none() -> None:
    async with engine(chunks(b" " * MEGABYTE, 100)) as client:
        assert await client.list_models() is None
        with pytest.raises(UpstreamUnavailableError):
            await client.get_models_raw()
