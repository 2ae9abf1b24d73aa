"""Protection against hostile clients that uvicorn lacks: timeouts, a limit of connections, and errors as JSON.

Uvicorn waits indefinitely for a request's head, and for a client that stops reading its response. Its
`limit_concurrency` counts connections too, but it responds in plain text, and only to clients that have sent a head.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, cast

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api.http.errors import RETRY_AFTER, ApiError, error_response
from api.http.middleware import new_request_id

log = logging.getLogger("everbatch.api")

HEAD_SECONDS: Final = 15.0
"""Time limit from the start of a connection, or the first byte of a further request, to the end of a request's head."""
IDLE_SECONDS: Final = 60
"""Maximum time between two requests, which is longer than clients keep idle connections, so that clients close them."""
WRITE_SECONDS: Final = 60.0
"""Time limit for a client to receive the data that waits to be sent to it, which is at most 64 KiB."""
LOG_AGAIN_SECONDS: Final = 60.0

_MALFORMED: Final = ApiError(400, "The request is not valid HTTP.")
_FULL: Final = ApiError(
    503,
    "The server has reached its maximum number of connections. Please try again.",
    "server_error",
    headers=RETRY_AFTER,
)


class Connection(H11Protocol):
    """One connection of a client."""

    def __init__(self, maximum: int, config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any):
        """Args: ``maximum`` is the maximum number of open connections."""
        super().__init__(config, server_state, app_state, **more)
        self._maximum = maximum
        self._since = 0.0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request of this connection is in progress."""
        cycle = cast("Any", self.cycle)  # uvicorn leaves it unset until the first request
        return cycle is None or cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch_head()
        if len(self.connections) > self._maximum and not self._close_longest_idle():
            self.app = cast("Any", _answer_full)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        response = error_response(_MALFORMED)
        headers = [*response.raw_headers, (b"x-request-id", new_request_id().encode()), (b"connection", b"close")]
        self._unset_keepalive_if_required()
        if self.conn.our_state is h11.IDLE or self.conn.our_state is h11.SEND_RESPONSE:
            answer: list[h11.Event] = [
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ]
            for event in answer:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_head(self) -> None:
        if not self.is_idle:
            if self._head_timer:
                self._head_timer.cancel()
                self._head_timer = None
        elif not self._head_timer:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _close_longest_idle(self) -> bool:
        """Close the connection that has been idle longest, so that clients that send nothing do not keep others out.

        Returns whether there was an idle connection.
        """
        everybody = cast("set[Connection]", self.connections)
        others = (one for one in everybody if one is not self and one.is_idle)
        if (idle := min(others, key=lambda one: one._since, default=None)) is None:
            return False
        idle.transport.abort()
        self.connections.discard(idle)
        return True


async def _answer_full(scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(_FULL)
    response.headers["x-request-id"] = new_request_id()
    response.headers["connection"] = "close"
    await response(scope, receive, send)


class OutOfDescriptors:
    """An event loop exception handler that logs, at most once a minute, that connections cannot be accepted.

    Asyncio would log it with a traceback every second, once for each place in the listener's queue.
    """

    def __init__(self) -> None:
        self._logged_at = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not context.get("message", "").startswith("socket.accept()"):
            loop.default_exception_handler(context)
            return
        now = time.monotonic()
        if now - self._logged_at >= LOG_AGAIN_SECONDS:
            self._logged_at = now
            error = context.get("exception")
            reason = error.strerror if isinstance(error, OSError) else "out of resources"
            log.error(
                "cannot accept connections: %s. Raise the limit of open files (ulimit -n) or lower "
                "EVERBATCH_MAX_CONNECTIONS",
                reason,
            )
