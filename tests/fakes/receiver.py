"""Whoever hears of the ends of batches: an HTTP server that keeps what it is sent and answers by script."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(frozen=True)
class Received:
    path: str
    body: bytes
    headers: dict[str, str]


@dataclass
class Receiver:
    port: int = 0
    received: list[Received] = field(default_factory=list[Received])
    statuses: list[int] = field(default_factory=list[int])
    """Of the next answers; then 200."""
    silent: bool = False
    """Whether it takes a request and says nothing."""

    def url(self, path: str = "/hook?token=URL-CANARY") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.received.append(Received(request.path, body, dict(request.headers)))
        if self.silent:
            await asyncio.sleep(3600)
        status = self.statuses.pop(0) if self.statuses else 200
        headers = {"location": "/elsewhere"} if 300 <= status < 400 else {}
        return web.Response(status=status, headers=headers, body=b"ANSWER-CANARY" * 10_000)


@contextlib.asynccontextmanager
async def open_receiver(port: int = 0) -> AsyncGenerator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", receiver._take)  # pyright: ignore[reportPrivateUsage]
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        receiver.port = runner.addresses[0][1]
        yield receiver
    finally:
        await runner.cleanup()
