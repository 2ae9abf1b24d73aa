"""An engine that costs next to nothing, so that what is measured is what is in front of it.

It reads no more of a request than where that ends, and gives the same answer to all. What it can tell is when it
answered the requests of each batch, by the first part of their ``user``: ``GET /answered`` has the seconds of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import httpx2

_ROOT = Path(__file__).resolve().parents[1]
_MODELS = b'{"object":"list","data":[{"id":"fake","object":"model","created":0,"owned_by":"everbatch"}]}'
_BODY = (
    b'{"id":"cheap","object":"chat.completion","created":0,"model":"fake","choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"%b"},"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":10,'
    b'"total_tokens":30}}' % (b"lorem ipsum " * 16)
)


def _http(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


_ANSWER = _http(_BODY)


class _Engine:
    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.answered: dict[str, list[float]] = {}


class _Connection(asyncio.Protocol):
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        while (end := data.find(b"\r\n\r\n") + 4) > 3:
            head = data[:end].lower()
            at = head.find(b"\r\ncontent-length: ")
            end += int(head[at + 18 : head.find(b"\r", at + 18)]) if at >= 0 else 0
            if len(data) < end:
                break
            self._receive(data[:end])
            data = data[end:]
        self._data = data

    def _receive(self, request: bytes) -> None:
        if not request.startswith(b"POST "):
            path = request.split(b" ", 2)[1]
            if path == b"/v1/models":
                self._transport.write(_http(_MODELS))
            elif path == b"/answered":
                self._transport.write(_http(json.dumps(self._engine.answered).encode()))
            else:
                self._transport.write(_http(b"{}", b"404 Not Found"))
            return
        start = request.find(b'"user": "') + 9
        batch = request[start : request.find(b"-", start)].decode()
        if self._engine.latency:
            self._loop.call_later(self._engine.latency, self._answer, batch)
        else:
            self._answer(batch)

    def _answer(self, batch: str) -> None:
        self._engine.answered.setdefault(batch, []).append(time.monotonic())
        self._transport.write(_ANSWER)


class CheapEngine:
    """The engine as a process."""

    def __init__(self, root: str, pid: int) -> None:
        self.root = root
        self.pid = pid

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    async def answered(self) -> dict[str, list[float]]:
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
            return (await http.get(f"{self.root}/answered")).json()


@contextlib.asynccontextmanager
async def cheap_engine(latency: float = 0.0) -> AsyncGenerator[CheapEngine]:
    """Args: ``latency`` of each answer, in seconds."""
    command = (sys.executable, "-m", "benchmarks.cheap_engine", str(latency))
    process = await asyncio.create_subprocess_exec(*command, cwd=_ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        yield CheapEngine(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.kill()
        await process.wait()


async def _serve(latency: float) -> None:
    engine = _Engine(latency)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(engine), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - the end of the parent sets no event
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
