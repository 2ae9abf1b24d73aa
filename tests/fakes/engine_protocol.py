"""HTTP/1.1 as the fake engine needs it: requests cut out of a connection's bytes, one at a time."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import NamedTuple, Protocol, cast

from tests.fakes.engine_answers import http_error
from tests.fakes.engine_script import Mode

_HEAD_END = b"\r\n\r\n"
_NO_LINGER = struct.pack("ii", 1, 0)


class Pending(NamedTuple):
    """A request in flight."""

    custom_id: bytes
    path: bytes
    number: int
    mode: Mode


class Handler(Protocol):
    """What a connection serves."""

    key: bytes
    """A line end of the head that a request under ``/v1/`` must have; empty where none is asked for."""

    def opened(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def receive(self, connection: Connection, path: bytes, body: bytes) -> None: ...
    def unauthorized(self, connection: Connection, method: bytes, body: bytes) -> None: ...
    def due(self, connection: Connection, pending: Pending) -> None: ...
    def abandoned(self, pending: Pending) -> None: ...
    def other(self, method: bytes, path: bytes, body: bytes) -> bytes: ...


class Connection(asyncio.Protocol):
    """One client connection, with at most one request in flight."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 0
        self._pending: Pending | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._head = b""

    @property
    def authorization(self) -> bytes:
        """Of the last request."""
        lines = (line.partition(b": ") for line in self._head.split(b"\r\n"))
        return next((value for name, _, value in lines if name.lower() == b"authorization"), b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._handler.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.closed(self)
        if self._timer:
            self._timer.cancel()
        if self._pending:
            self._handler.abandoned(self._pending)
            self._pending = None

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._have += len(data)
        if self._have >= self._need and not self._pending:
            self._next_request()

    def _next_request(self) -> None:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        while data and not self._pending:
            end = data.find(_HEAD_END)
            if end < 0:
                break
            start = end + 4
            head = data[:start]
            self._need = start + _content_length(head)
            if len(data) < self._need:
                break
            body, data = data[start : self._need], data[self._need :]
            self._need = 0
            self._handle(head, body)
        self._chunks = [data] if data else []
        self._have = len(data)

    def _handle(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        self._head = head
        if self._handler.key and path.startswith(b"/v1/") and self._handler.key not in head:
            self._handler.unauthorized(self, method, body)
        elif method != b"POST" or not path.startswith(b"/v1/"):
            self.send(self._handler.other(method, path, body))
        elif b"\r\ntransfer-encoding:" in head.lower():
            self._closing = True
            self.send(http_error(411, "The fake engine wants a Content-Length."))
        else:
            self._handler.receive(self, path, body)

    def hold(self, pending: Pending, delay: float | None) -> None:
        """Have the handler answer after ``delay`` seconds, or never."""
        if delay is None:
            self._pending = pending
        elif delay <= 0:
            self._handler.due(self, pending)
        else:
            self._pending = pending
            self._timer = self._loop.call_later(delay, self._due)

    def _due(self) -> None:
        pending, self._pending, self._timer = self._pending, None, None
        assert pending
        self._handler.due(self, pending)
        if self._chunks:  # came while the request was in flight
            self._next_request()

    def send(self, answer: bytes) -> None:
        if not self._closing:
            self._transport.write(answer)
            return
        # Said aloud, or the client may send its next request before it sees the end of the connection.
        self._transport.write(answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
        self._transport.close()

    def send_half(self, answer: bytes) -> None:
        """Half an answer, then a TCP reset."""
        self._transport.write(answer[: len(answer) // 2])
        connection = cast("socket.socket", self._transport.get_extra_info("socket"))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        # A reset makes the kernel drop what the client has not read yet; this is the time to read it.
        self._loop.call_later(0.005, self._transport.abort)

    def close_when_idle(self) -> None:
        self._closing = True
        if not self._pending:
            self._transport.close()

    def drop(self) -> None:
        self._transport.abort()


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    at = lowered.find(b"\r\ncontent-length:")
    return int(lowered[at + 17 : lowered.find(b"\r", at + 2)]) if at >= 0 else 0
