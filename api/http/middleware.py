"""The headers that every response has, the log line of every request, and the answer to unhandled errors."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.anthropic_errors import is_anthropic
from api.http.errors import ApiError, error_response, server_error, unavailable
from api.http.logs import REQUEST_ID
from api.http.metrics import ApiMetrics

log = logging.getLogger("everbatch.api")

_QUIET = ("/health", "/ready")
"""Paths that are polled every few seconds, and therefore logged at a lower level."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MAX_CLIENT_ID_LENGTH = 512
_CLIENT_GONE = 499
"""The status that nginx logs for a client that disconnected before it got a response."""


class RequestMiddleware:
    """Gives each request an id, answers unhandled errors, and logs one line without query, headers or bodies."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        REQUEST_ID.set(exchange.request_id)  # each request is a task of its own, with a context of its own
        try:
            await self._answer(scope, receive, exchange)
        finally:
            exchange.log()
            exchange.count(self._metrics)

    async def _answer(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        if not _is_client_id(exchange.client_id):
            text = f"X-Client-Request-Id must be printable ASCII and at most {_MAX_CLIENT_ID_LENGTH} characters long."
            await error_response(ApiError(400, text), scope["path"])(scope, receive, exchange.send)
            return
        try:
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            return  # no client is left to respond to
        except asyncio.CancelledError:
            # The server is stopping and its grace period is over. It cuts off a response that was sent in part.
            if exchange.status is None:
                await error_response(unavailable("The server"), scope["path"])(scope, receive, exchange.send)
            raise
        except Exception:
            if exchange.status is not None:
                raise  # the server closes the connection, so that a partial response does not pass for a whole one
            log.exception("request %s failed", exchange.request_id)
            await error_response(server_error(), scope["path"])(scope, receive, exchange.send)


def new_request_id() -> str:
    """Return an id for ``x-request-id``, in the form of OpenAI's ids."""
    return f"req_{uuid.uuid4().hex}"


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started = time.perf_counter()
        self.request_id = new_request_id()
        self.client_id = next((value for name, value in scope["headers"] if name == b"x-client-request-id"), b"")
        # OpenAI allows any origin for files. For a request without a key, this would let any web page read the files
        # of a server that requires no key. With a key, a browser sends a preflight request first, which is refused.
        names = {name for name, _ in scope["headers"]}
        has_key = b"authorization" in names or b"api-key" in names
        self._is_for_any_origin = has_key and (scope["path"] + "/").startswith("/v1/files/")
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            headers["x-request-id"] = self.request_id
            if is_anthropic(self._scope["path"]):
                headers["request-id"] = self.request_id
            headers["openai-processing-ms"] = str(self._milliseconds())
            headers["openai-version"] = "2020-10-01"
            headers["x-content-type-options"] = "nosniff"
            if self._is_for_any_origin:
                headers["access-control-allow-origin"] = "*"
            message = {**message, "headers": headers.raw}
        await self._send(message)

    def log(self) -> None:
        path = self._path()
        log.log(
            logging.DEBUG if path in _QUIET or self._is_poll() else logging.INFO,
            "%s %s %d %d ms %s%s",
            self._scope["method"],
            path,
            self.status or _CLIENT_GONE,
            self._milliseconds(),
            self.request_id,
            f" {self.client_id.decode()}" if self.client_id and _is_client_id(self.client_id) else "",
        )

    def _is_poll(self) -> bool:
        """Return whether the response was a batch's status: there are thousands of them, most with nothing new."""
        return (
            self._scope["method"] == "GET"
            and self.status == 200
            and (self._scope["path"] + "/").startswith(("/v1/batches/", "/v1/messages/batches/"))
        )

    def count(self, metrics: ApiMetrics) -> None:
        route = getattr(self._scope.get("route"), "path", "none")
        seconds = time.perf_counter() - self._started
        # Clients may send any word as a method, and each word would permanently add a time series.
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        metrics.answered(method, route, self.status or _CLIENT_GONE, seconds)

    def _path(self) -> str:
        # The path as it was sent, percent-encoded: a decoded one may contain line breaks and forge a line of the log.
        raw = self._scope.get("raw_path") or self._scope["path"].encode("ascii", "backslashreplace")
        return raw.decode("latin-1")[:500]

    def _milliseconds(self) -> int:
        return round((time.perf_counter() - self._started) * 1000)


def _is_client_id(value: bytes) -> bool:
    # The id is logged, and other characters could move the cursor of a terminal that shows the log.
    return value.isascii() and value.decode().isprintable() and len(value) <= _MAX_CLIENT_ID_LENGTH
