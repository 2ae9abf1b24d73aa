"""The HTTP client of an upstream; ``answers.py`` interprets its responses.

Only this module knows which HTTP library is used. It never retries: all retries are Temporal's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import ssl
import sys
import time
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from activities.raw_json import raw_bytes, raw_object
from activities.upstreams.answer_budget import AnswerBudget, Held
from activities.upstreams.answers import Answer, Verdict, classify
from activities.upstreams.config import Upstream
from activities.upstreams.dialects import DIALECTS
from activities.upstreams.errors import UpstreamUnavailableError

CONNECT_TIMEOUT: Final = 10.0
MODEL_LIST_TIMEOUT: Final = 5.0
MODEL_LIST_BYTES: Final = 8 << 20
METRICS_TIMEOUT: Final = 2.0
METRICS_BYTES: Final = 4 << 20

SHORTEST_SECRET: Final = 8
"""Minimum characters of a secret that is masked: masking ``1``, for example, would corrupt answers."""

# uvicorn, which most engines use, closes connections that are idle for 5 s. Ours must be closed earlier: a request that
# is sent into a closing connection is lost, and it is unknown whether the engine has received it.
KEEP_ALIVE: Final = 4.0

SMALL_ANSWER: Final = 64 << 10
"""Maximum bytes of an answer that are not counted against the memory budget for answers."""

_LARGE: Final = 1 << 20
_FAILURES: Final = (aiohttp.ClientError, OSError)
"""What a request may raise when the server cannot be reached or breaks off its answer."""
_USER_AGENT: Final = f"everbatch/{version('everbatch')}"


class _ModelId(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelId]


class InferenceClient:
    """Sends requests to one upstream. Create it on a running event loop, and close it at the end."""

    def __init__(self, upstream: Upstream, budget: AnswerBudget | None = None) -> None:
        """Args: ``budget`` is shared by all clients of a process; without one, only each single answer is bounded."""
        self.upstream = upstream
        self._budget = budget or AnswerBudget(sys.maxsize)
        self._dialect = DIALECTS[upstream.dialect]
        self._added = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in upstream.body.items()}
        # The hot path: if so, the bytes of a body are sent unchanged.
        self._as_it_came = not (upstream.aliases or self._added or self._dialect.body or self._dialect.path_has_model)
        self._targets: dict[tuple[str, int], URL] = {}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": _USER_AGENT}
        if key := upstream.key.get_secret_value():
            headers |= self._dialect.auth(key)
        extra = {name: value.get_secret_value() for name, value in upstream.headers.items()}
        names = {name.lower() for name in extra}
        headers = {name: value for name, value in headers.items() if name.lower() not in names} | extra
        secrets = [key, *extra.values()]
        self._secrets = [secret.encode() for secret in secrets if len(secret) >= SHORTEST_SECRET]
        self._session = aiohttp.ClientSession(
            headers=headers,
            # The limiter decides how many requests are sent at once. A limit here would only hide its queue.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE, ttl_dns_cache=30),
            timeout=aiohttp.ClientTimeout(total=upstream.timeout, sock_connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

        self._bare_session = aiohttp.ClientSession(
            headers={"User-Agent": _USER_AGENT}, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def close(self) -> None:
        await self._session.close()
        await self._bare_session.close()

    async def send(self, endpoint: str, body: bytes, replica: int = 0) -> Answer:
        """Send a request once. Cancellation closes the connection, so that the engine stops generating."""
        model = ""
        if not self._as_it_came:
            model, body = self._in_dialect(endpoint, body)
            if model in (".", ".."):
                return _no_segment(model)
        held = self._budget.held()
        try:
            target = self._target(endpoint, model, replica)
            async with self._session.post(target, data=_in_pieces(body), allow_redirects=False) as response:
                data = await _read(response, self.upstream.max_answer_bytes, held)
                if data is None:
                    return _too_large(response.status, self.upstream.max_answer_bytes)
                answer = classify(response.status, response.headers, self._masked(data), time.time())
                if len(data) > SMALL_ANSWER:
                    answer, held = dataclasses.replace(answer, held=held), None
                return answer
        except _FAILURES as error:
            return _without_answer(error, self.upstream.timeout)
        finally:
            if held:
                held.release()

    def _in_dialect(self, endpoint: str, body: bytes) -> tuple[str, bytes]:
        """Return the engine's name of the model, or "" if the path does not have it, and the body for the engine."""
        members = raw_object(body)
        if members is None:
            return "", body  # the engine refuses it
        model = _text(members.get("model"))
        if (name := self.upstream.aliases.get(model)) is not None:
            model = name
            members["model"] = msgspec.Raw(msgspec.json.encode(name))
        elif not (self._dialect.body or self._added.keys() - members.keys()):
            return model if self._dialect.path_has_model else "", body
        for added, value in self._added.items():
            members.setdefault(added, value)
        if self._dialect.body:
            members = self._dialect.body(endpoint, members)
        return model if self._dialect.path_has_model else "", raw_bytes(members)

    def _target(self, endpoint: str, model: str, replica: int) -> URL:
        url = self._targets.get((endpoint, replica))
        if url is None:
            path = self._dialect.path(endpoint, model, self.upstream.api_version)
            url = URL(self.upstream.urls[replica] + path, encoded=self._dialect.path_has_model)
            if not self._dialect.path_has_model:  # the number of model names is unbounded
                self._targets[endpoint, replica] = url
        return url

    def _masked(self, answer: bytes) -> bytes:
        """Mask secrets: engines and proxies often quote the key that they refuse."""
        for secret in self._secrets:
            if secret in answer:
                answer = answer.replace(secret, b"***")
        return answer

    async def is_up(self, replica: int = 0) -> bool:
        """Return whether a replica answers a request for its models or, if it has no such list, its health check."""
        try:
            response, data = await self._fetch_models(replica)
            if response.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
                return response.ok and data is not None
            health = URL(self.upstream.urls[replica]).origin() / "health"
            async with _get(self._session, health, MODEL_LIST_TIMEOUT) as response:
                return response.ok
        except _FAILURES:
            return False

    async def get_metrics(self, replica: int) -> bytes | None:
        """Return the Prometheus metrics of a replica, or ``None`` if it serves none.

        The first request has no key and no configured headers: they are meant for the API, and another service may
        serve ``/metrics`` at the same address. They are only sent to a server that answers 401.
        """
        if self._dialect.metrics_path is None:
            return None
        url = URL(self.upstream.urls[replica] + "/").join(URL(self._dialect.metrics_path))
        with contextlib.suppress(*_FAILURES):
            for session in (self._bare_session, self._session):
                async with _get(session, url, METRICS_TIMEOUT) as response:
                    if response.status == HTTPStatus.OK:
                        return await _read(response, METRICS_BYTES, None)
                    if response.status != HTTPStatus.UNAUTHORIZED:
                        return None
        return None

    async def _fetch_models(self, replica: int) -> tuple[aiohttp.ClientResponse, bytes | None]:
        """Return a replica's response to a request for its models, and its body unless that is too large."""
        url = URL(f"{self.upstream.urls[replica]}/models")
        async with _get(self._session, url, MODEL_LIST_TIMEOUT) as response:
            data = await _read(response, MODEL_LIST_BYTES, None)
            return response, None if data is None else self._masked(data)

    async def get_models(self, replica: int) -> Answer:
        """Return a replica's answer to a request for its list of models."""
        try:
            response, data = await self._fetch_models(replica)
        except _FAILURES as error:
            return _without_answer(error, MODEL_LIST_TIMEOUT)
        if data is None:
            return _too_large(response.status, MODEL_LIST_BYTES)
        return classify(response.status, response.headers, data, time.time())

    async def get_models_raw(self) -> tuple[int, bytes]:
        """Return the status and body of the model list from the first replica that answers.

        Raises:
            UpstreamUnavailableError: no replica answers.
        """
        for replica in range(len(self.upstream.urls)):
            with contextlib.suppress(*_FAILURES):
                response, data = await self._fetch_models(replica)
                if data is not None:
                    return response.status, data
        raise UpstreamUnavailableError(f"the inference server at {', '.join(self.upstream.urls)} does not answer")

    async def list_models(self) -> frozenset[str] | None:
        """Return the names of the server's models, or ``None`` if they are unknown, as no list could be read."""
        try:
            status, body = await self.get_models_raw()
            if status != HTTPStatus.OK:
                return None
            names = model_names(body)
        except (UpstreamUnavailableError, ValueError):
            return None
        # Ollama lists `name:latest` and also accepts `name`.
        return frozenset(names | {name.removesuffix(":latest") for name in names}) or None


def model_names(body: bytes) -> set[str]:
    """Return the names in the body of a model list.

    Raises:
        ValueError: the body is not a model list.
    """
    try:
        return {model.id for model in msgspec.json.decode(body, type=_ModelList).data}
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _in_pieces(body: bytes) -> bytes | io.BytesIO:
    """Return the body for aiohttp, which would write large bytes at once and block the event loop meanwhile."""
    return body if len(body) <= _LARGE else io.BytesIO(body)


def _get(
    session: aiohttp.ClientSession, url: URL, seconds: float
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    return session.get(url, timeout=aiohttp.ClientTimeout(total=seconds), allow_redirects=False)


def _text(raw: msgspec.Raw | None) -> str:
    try:
        return msgspec.json.decode(raw, type=str) if raw is not None else ""
    except msgspec.DecodeError:
        return ""


async def _read(response: aiohttp.ClientResponse, maximum: int, held: Held | None) -> bytes | None:
    """Return the decompressed body, or ``None`` if it exceeds ``maximum`` bytes. Reading stops soon after that.

    An answer that is not small stays in its connection until ``held`` has memory for it.
    """
    is_packed = "content-encoding" in response.headers or "transfer-encoding" in response.headers
    if not is_packed and (response.content_length or maximum + 1) <= min(maximum, SMALL_ANSWER):
        return await response.read()  # the hot path: the parser stops at that length
    body = io.BytesIO()  # returns its bytes without a copy
    async for piece in response.content.iter_any():
        if body.tell() + len(piece) > maximum:
            return None
        if held and body.tell() + len(piece) > SMALL_ANSWER:
            await held.grow(len(piece))
        body.write(piece)
    return body.getvalue()


def _too_large(status: int, maximum: int) -> Answer:
    reason = f"HTTP {status} with a body of more than {maximum} bytes"
    message = f"The answer was {reason}."
    return Answer(Verdict.RETRY, code="answer_too_large", message=message, reason=reason, is_costly=True)


def _no_segment(model: str) -> Answer:
    """Refuse a model name that is no path segment. Escaping does not help: servers resolve it to another path."""
    message = f"'{model}' is not a valid model name."
    return Answer(Verdict.FINAL, code="model_not_found", message=message, reason="a model that cannot be named")


def _without_answer(error: Exception, timeout: float) -> Answer:
    """Classify a request without an answer. Args: ``timeout`` is the timeout that applied, in seconds."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return _unreachable("no connection in time")
    if isinstance(error, TimeoutError):
        reason = f"no answer within {timeout:g} s"
        message = f"The inference server gave {reason}."
        return Answer(Verdict.TIMED_OUT, code="request_timeout", message=message, reason=reason)
    if isinstance(error, aiohttp.ClientConnectorError):
        return _unreachable(_connection_reason(error))
    reason = "connection lost" if isinstance(error, aiohttp.ClientConnectionError) else "broken answer"
    message = "The connection to the inference server was lost before its answer was complete."
    return Answer(Verdict.RETRY, code="connection_error", message=message, reason=reason)


def _unreachable(reason: str) -> Answer:
    message = f"The inference server could not be reached: {reason}."
    return Answer(Verdict.UNREACHABLE, code="connection_error", message=message, reason=reason)


def _connection_reason(error: aiohttp.ClientConnectorError) -> str:
    # Not the exception's own text, which may contain addresses and certificates.
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(error.os_error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error.os_error, ConnectionRefusedError):
        return "connection refused"
    return "connection failed"
