"""Clients of a real socket that are slow, silent or too many: each is bounded, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http import bodies, connections
from api.http.server import listen, serve
from tests.fakes.api import open_api
from tests.integration.stack import until

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
CLOSE = GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
POST = b"POST /v1/%b HTTP/1.1\r\nhost: localhost\r\ncontent-type: %b\r\ncontent-length: 100000\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, first: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(writer)
        writer.write(first)
        return reader, writer

    async def answer(self, request: bytes) -> bytes:
        reader, _ = await self.connect(request)
        return await ended(reader)

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def ended(reader: asyncio.StreamReader, seconds: float = 10) -> bytes:
    """All that the server sends until it closes."""
    answer = b""
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                answer += data
    return answer


@asynccontextmanager
async def serving(app: ASGIApp, maximum: int = 1000) -> AsyncGenerator[Server]:
    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as listener:
        server = Server(listener.getsockname()[1])
        task = asyncio.create_task(serve(app, listener, stop, maximum))
        try:
            yield server
        finally:
            server.close()
            stop.set()
            await task
            asyncio.get_running_loop().set_exception_handler(None)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[Server]:
    async with serving(open_api(tmp_path).app, maximum=20) as server:
        yield server


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.3)
    monkeypatch.setattr(bodies, "STALL_SECONDS", 0.3)


def error(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: req_" in head.lower()
    return json.loads(body)["error"]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("sent", [b"", GET[:30]])
async def test_a_head_that_does_not_end(server: Server, sent: bytes) -> None:
    reader, writer = await server.connect(sent)

    async def drip() -> None:
        for byte in b"x" * 100:
            await asyncio.sleep(0.05)
            if sent:
                writer.write(bytes([byte]))

    dripping = asyncio.create_task(drip())
    assert await ended(reader, 3) == b""
    dripping.cancel()


@pytest.mark.usefixtures("hasty")
async def test_a_second_head_that_does_not_end(server: Server) -> None:
    reader, writer = await server.connect(GET)
    assert b"200 OK" in await reader.read(1000)
    writer.write(GET[:30])
    assert await ended(reader, 3) == b""


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("path", "kind"), [(b"batches", b"application/json"), (b"files", b"multipart/form-data; boundary=b")]
)
async def test_a_body_that_stalls(server: Server, path: bytes, kind: bytes) -> None:
    answer = await server.answer(POST % (path, kind) + b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx')
    assert answer.startswith(b"HTTP/1.1 408")
    assert error(answer)["code"] == "request_timeout"


@pytest.mark.usefixtures("hasty")
async def test_an_answer_that_nobody_reads() -> None:
    released = asyncio.Event()

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        released.set()
        await send({"type": "http.response.body", "body": b""})

    async with serving(large) as server:
        reader, _ = await server.connect(GET)
        await reader.readexactly(50)
        async with asyncio.timeout(10):
            await released.wait()


async def test_silent_connections_keep_nobody_out(server: Server) -> None:
    silent = [await server.connect(GET[: n % 30]) for n in range(60)]
    assert b"200 OK" in await server.answer(CLOSE)
    gone = [reader for reader, _ in silent if reader.at_eof() or reader.exception()]
    assert len(gone) >= 40


async def test_more_requests_than_connections(server: Server) -> None:
    """They get an error that clients can read, and are accepted again later."""
    busy = [await server.connect(POST % (b"batches", b"application/json")) for _ in range(20)]
    await asyncio.sleep(0.1)
    answer = await server.answer(CLOSE)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"\r\nretry-after: " in answer.lower()
    assert error(answer)["type"] == "server_error"
    for _, writer in busy:
        writer.transport.abort()

    async def answered() -> bool:
        return b"200 OK" in await server.answer(CLOSE)

    await until(answered, "room for another", 5)


@pytest.mark.parametrize("request_", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
async def test_what_is_not_http(server: Server, request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = await server.answer(request_)
    assert answer.startswith(b"HTTP/1.1 400")
    assert error(answer)["message"] == "The request is not valid HTTP."


async def test_answers_on_one_connection_do_not_wait_for_acknowledgements(server: Server) -> None:
    """Without TCP_NODELAY each took 40 ms: the body's piece waited for the head's to be acknowledged."""
    reader, writer = await server.connect()
    request = GET.replace(b"/health", b"/v1/models")
    took: list[float] = []
    for _ in range(10):
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        took.append(time.perf_counter() - start)
    assert sorted(took)[len(took) // 2] < 0.03


async def test_out_of_descriptors_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    handle = connections.OutOfDescriptors()
    error = OSError(24, "Too many open files")
    for _ in range(5000):
        handle(
            asyncio.get_running_loop(),
            {"message": "socket.accept() out of system resource", "exception": error, "socket": socket.socket},
        )
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Too many open files" in record.getMessage()
    assert "EVERBATCH_MAX_CONNECTIONS" in record.getMessage()
