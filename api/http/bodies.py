"""Request bodies, streamed and limited in size."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.http.errors import ApiError

JSON_LIMIT = 1 << 20
_DRAIN_SECONDS = 10.0
STALL_SECONDS = 30.0
"""Maximum time without a byte of a body that is being read, after which the request fails with a 408."""


class Body:
    """The bytes of a request's body. Reading fails as soon as there are too many."""

    def __init__(self, request: Request, limit: int, allowance: int = 0) -> None:
        """Args: ``limit`` is the maximum size of the content in bytes; ``allowance`` is added for what wraps it."""
        self._request = request
        self._limit = limit
        self._maximum = limit + allowance
        self._size = 0
        self._ended = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            ApiError: the body or its declared length is above the limit (413), or its bytes stop arriving (408).
            ClientDisconnect: the client disconnected before the end.
        """
        declared = self._request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._maximum:
            raise too_large(self._limit)
        while not self._ended:
            chunk = await self._receive()
            if self._size > self._maximum:
                raise too_large(self._limit)
            if chunk:
                yield chunk

    async def drain(self) -> None:
        """Read and discard the rest of the body, within bounds.

        Many clients read a response only after they have sent the whole body, and see a reset connection if the server
        closes it before.
        """
        if self._size == 0 and "expect" in self._request.headers:
            return  # the client waits for permission to send, and the response refuses it
        maximum = self._size + self._maximum
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._ended and self._size <= maximum:
                    await self._receive()

    async def _receive(self) -> bytes:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                message = await self._request.receive()
        except TimeoutError:
            self._ended = True  # nothing is left to drain
            text = f"No data of the request's body arrived for {STALL_SECONDS:g} s."
            raise ApiError(408, text, code="request_timeout", headers={"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            self._ended = True
            raise ClientDisconnect
        self._ended = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        self._size += len(chunk)
        return chunk


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than the maximum of {limit} bytes.")


class _JsonRequest(Request):
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            body = Body(self, JSON_LIMIT)
            try:
                self._body = b"".join([chunk async for chunk in body.chunks()])
            except ApiError:
                await body.drain()
                raise
        return self._body


class JsonRoute(APIRoute):
    """A route whose body may have at most :data:`JSON_LIMIT` bytes.

    Starlette's ``max_body_size`` refuses a declared length in plain text and bypasses every error handler.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return bounded
