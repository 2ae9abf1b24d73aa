"""A real server on a real socket, and clients that do not speak HTTP as they should."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.processes import API_LINE, Child, Launcher
from tests.integration.stack import until

MEGABYTE = 1 << 20
MAX_GROWTH = 30 * MEGABYTE
FORM = (
    b'--b0\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b0\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
)
POST = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b0\r\n"
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Server(NamedTuple):
    child: Child
    port: int
    store: Path

    def peak(self) -> int:
        """Bytes of memory that the process has had at most."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def temporary(self) -> list[Path]:
        """What uploads under way have on disk, and what they have left."""
        kept = ("files", "index", "due")
        return [
            path for path in self.store.rglob("*") if path.is_file() and path.parts[len(self.store.parts)] not in kept
        ]

    def files(self) -> list[Path]:
        return [path for path in (self.store / "files").rglob("*") if path.is_file()]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, *pieces: bytes, seconds: float = 30) -> bytes:
        """All that comes back on one connection until the server closes it."""
        reader, writer = await self.connect()
        answer = b""
        # A server that closes with something unread resets the connection.
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(seconds):
                while data := await reader.read(MEGABYTE):
                    answer += data
        writer.close()
        return answer


@pytest.fixture
async def server(cluster: Launcher) -> AsyncGenerator[Server]:
    child = await cluster.start("serve", "--port", "0", env={"EVERBATCH_UPSTREAM_URL": "http://127.0.0.1:9/v1"})
    port = int((await child.said(API_LINE))[1])
    yield Server(child, port, Path(cluster.env["EVERBATCH_STORE"]))
    child.check_clean_exit()


async def test_hostile_clients_of_one_server(server: Server) -> None:
    """One process for all of it: what each leaves behind, the next one would meet."""
    await many_slow_clients(server)
    await odd_http(server)
    await aborted_uploads(server)
    await bodies_without_end(server)
    assert b"200 OK" in (await server.exchange(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")))
    for text in (server.child.stdout, server.child.stderr):
        assert "Traceback" not in text
        assert " 500 " not in text


async def many_slow_clients(server: Server) -> None:
    """They are served no worse than others, and do not keep others from being served."""
    slow = await asyncio.gather(*(server.connect() for _ in range(200)))
    for _, writer in slow:
        writer.write(POST + b"content-length: 1000\r\n")  # and never the rest of its head
    answer = await server.exchange(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), seconds=10)
    assert b"200 OK" in answer
    for _, writer in slow:
        writer.close()


async def odd_http(server: Server) -> None:
    close = b"connection: close\r\n"
    last = GET.replace(b"\r\n\r\n", b"\r\n" + close + b"\r\n")
    assert (await server.exchange(GET * 20 + last)).count(b"HTTP/1.1 200") == 21
    whole = FORM + b"{}\r\n--b0--\r\n"
    dribble = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in whole) + b"0\r\nx: trailer\r\n\r\n"
    answer = await server.exchange(POST + close + b"transfer-encoding: chunked\r\n\r\n" + dribble)
    assert answer.startswith(b"HTTP/1.1 200")
    waiting = POST + close + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(whole)
    answer = await server.exchange(waiting, whole)
    assert b"HTTP/1.1 100" in answer
    assert b"HTTP/1.1 200" in answer
    too_long = POST + close + b"expect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n"
    answer = await server.exchange(too_long)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"error"' in answer
    refused = [
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        POST + b"content-length: -1\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
        POST + b"transfer-encoding: gzip\r\n\r\n",
        b"GET /nothing HTTP/9.9\r\nconnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /v1/files HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"".join(
            [b"GET /v1/files HTTP/1.1\r\nhost: localhost\r\n", *(b"x-%d: y\r\n" % n for n in range(100_000)), b"\r\n"]
        ),
    ]
    for request in refused:
        answer = await server.exchange(request, seconds=15)

        assert re.match(rb"HTTP/1.1 (400|404|413|501)|$", answer), (request[:80], answer[:80])


async def aborted_uploads(server: Server) -> None:
    before = server.files()
    for part in (FORM[:100], FORM, FORM + b"x" * 3 * MEGABYTE):
        connections = [await server.connect() for _ in range(5)]
        for _, writer in connections:
            writer.write(POST + b"content-length: %d\r\n\r\n" % (100 * MEGABYTE) + part)
            await writer.drain()
        for number, (_, writer) in enumerate(connections):
            if number % 2:
                writer.transport.abort()
            else:
                writer.close()

    async def look() -> bool:
        return server.temporary() == [] and server.files() == before

    await until(look, "the end of what aborted uploads had on disk", 20)


async def bodies_without_end(server: Server) -> None:
    before, files = server.peak(), server.files()
    nonsense = b"%x\r\n%b\r\n" % (MEGABYTE, b"\r\n--b" * (MEGABYTE // 5) + b"x" * (MEGABYTE % 5))
    in_file = b"%x\r\n%b\r\n" % (len(FORM), FORM)
    head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    await server.exchange(head, *[nonsense] * 80)
    await server.exchange(head, in_file, *[nonsense] * 80, b"0\r\n\r\n")
    await server.exchange(head.replace(b"/files", b"/batches"), *[nonsense] * 80)
    assert server.peak() - before < MAX_GROWTH
    assert server.files() == files
