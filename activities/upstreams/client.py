"""The HTTP client of an upstream; ``answers.py`` interprets its responses.

The one module that knows which transport sends the bytes. It retries nothing: Temporal owns every retry.
"""

from __future__ import annotations

import dataclasses
import io
import json
import ssl
import sys
import time
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

CONNECT_TIMEOUT: Final = 10.0
MODEL_LIST_TIMEOUT: Final = 5.0
MODEL_LIST_BYTES: Final = 8 << 20
METRICS_TIMEOUT: Final = 2.0
METRICS_BYTES: Final = 4 << 20

SHORTEST_SECRET: Final = 8
"""Characters; masking something like ``1`` would spoil answers."""

# uvicorn, which most engines use, closes a connection after 5 s idle. Ours must be the shorter patience: a
# request sent into a closing connection is lost, and nobody can say whether the engine has seen it.
KEEP_ALIVE: Final = 4.0

SMALL_ANSWER: Final = 64 << 10
"""Bytes in an answer that the memory for answers need not be asked about."""

_LARGE: Final = 1 << 20
_USER_AGENT: Final = f"everbatch/{version('everbatch')}"


class UpstreamUnavailableError(Exception):
    """The upstream does not respond."""


class _ModelId(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelId]


class InferenceClient:
    """Sends requests to one upstream. Build it on a running event loop; close it at the end."""

    def __init__(self, upstream: Upstream, budget: AnswerBudget | None = None) -> None:
        """Args: ``budget`` is what all clients of a process share; without one, answers are bounded one by one."""
        self.upstream = upstream
        self._budget = budget or AnswerBudget(sys.maxsize)
        self._dialect = DIALECTS[upstream.dialect]
        self._added = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in upstream.body.items()}
        # The hot path: then the body goes out as the bytes that it came as.
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
            # How many go out at once is the limiter's business; a second limit here would only hide its queue.
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
        """Send a request once. Cancelling closes its connection, so that the engine stops generating."""
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
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            return _without_answer(error, self.upstream.timeout)
        finally:
            if held:
                held.release()

    def _in_dialect(self, endpoint: str, body: bytes) -> tuple[str, bytes]:
        """The engine's name of the model, where the path needs it, and the body as the engine wants it."""
        members = raw_object(body)
        if members is None:
            return "", body  # for the engine to refuse
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
            if not self._dialect.path_has_model:  # clients may name any number of models
                self._targets[endpoint, replica] = url
        return url

    def _masked(self, answer: bytes) -> bytes:
        """Engines and proxies like to quote the key that they refuse."""
        for secret in self._secrets:
            if secret in answer:
                answer = answer.replace(secret, b"***")
        return answer

    async def is_up(self, replica: int = 0) -> bool:
        """Whether a replica answers a question about itself: its models, asked with our key, or else its health."""
        base = self.upstream.urls[replica]
        timeout = aiohttp.ClientTimeout(total=MODEL_LIST_TIMEOUT)
        try:
            async with self._session.get(f"{base}/models", timeout=timeout, allow_redirects=False) as response:
                if response.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
                    return response.ok and await _read(response, MODEL_LIST_BYTES, None) is not None
            health = URL(base).origin() / "health"
            async with self._session.get(health, timeout=timeout, allow_redirects=False) as response:
                return response.ok
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    async def get_metrics(self, replica: int) -> bytes | None:
        """What a replica says of itself to Prometheus, or ``None`` where it does not.

        Asked without our key and headers: they are for the API, and ``/metrics`` may be somebody else's behind the
        same address. Only a server that asks for a key gets it.
        """
        if self._dialect.metrics_path is None:
            return None
        url = URL(self.upstream.urls[replica] + "/").join(URL(self._dialect.metrics_path))
        timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT)
        try:
            for session in (self._bare_session, self._session):
                async with session.get(url, timeout=timeout, allow_redirects=False) as response:
                    if response.status == HTTPStatus.OK:
                        return await _read(response, METRICS_BYTES, None)
                    if response.status != HTTPStatus.UNAUTHORIZED:
                        return None
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass
        return None

    async def ask_models(self, replica: int) -> Answer:
        """What a replica answers when it is asked for its models."""
        timeout = aiohttp.ClientTimeout(total=MODEL_LIST_TIMEOUT)
        url = f"{self.upstream.urls[replica]}/models"
        try:
            async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
                data = await _read(response, MODEL_LIST_BYTES, None)
                if data is None:
                    return _too_large(response.status, MODEL_LIST_BYTES)
                return classify(response.status, response.headers, self._masked(data), time.time())
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return _without_answer(error, MODEL_LIST_TIMEOUT)

    async def get_models_raw(self) -> tuple[int, bytes]:
        """Status and body of the server's model list, by the first replica that answers.

        Raises:
            UpstreamUnavailableError: none does.
        """
        timeout = aiohttp.ClientTimeout(total=MODEL_LIST_TIMEOUT)
        for url in self.upstream.urls:
            try:
                async with self._session.get(f"{url}/models", timeout=timeout, allow_redirects=False) as response:
                    if (data := await _read(response, MODEL_LIST_BYTES, None)) is not None:
                        return response.status, self._masked(data)
            except (TimeoutError, aiohttp.ClientError, OSError):
                continue
        raise UpstreamUnavailableError(f"the inference server at {', '.join(self.upstream.urls)} does not answer")

    async def list_models(self) -> frozenset[str] | None:
        """Names of the server's models, or ``None`` where it cannot be asked: then nothing is known, not "none"."""
        try:
            status, body = await self.get_models_raw()
            if status != HTTPStatus.OK:
                return None
            names = model_names(body)
        except (UpstreamUnavailableError, ValueError):
            return None
        # Ollama lists `name:latest` and answers to `name`.
        return frozenset(names | {name.removesuffix(":latest") for name in names}) or None


def model_names(body: bytes) -> set[str]:
    """The names in a list of models.

    Raises:
        ValueError: it is not one.
    """
    try:
        return {model.id for model in msgspec.json.decode(body, type=_ModelList).data}
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _in_pieces(body: bytes) -> bytes | io.BytesIO:
    """The body for the transport, which would write a large one at once and hold up the loop meanwhile."""
    return body if len(body) <= _LARGE else io.BytesIO(body)


def _text(raw: msgspec.Raw | None) -> str:
    try:
        return msgspec.json.decode(raw, type=str) if raw is not None else ""
    except msgspec.DecodeError:
        return ""


async def _read(response: aiohttp.ClientResponse, maximum: int, held: Held | None) -> bytes | None:
    """The body, unpacked; ``None`` where it has more than ``maximum`` bytes, of which not many more are read.

    What is more than a small answer waits for its share of the memory, and meanwhile in its connection.
    """
    is_packed = "content-encoding" in response.headers or "transfer-encoding" in response.headers
    if not is_packed and (response.content_length or maximum + 1) <= min(maximum, SMALL_ANSWER):
        return await response.read()  # the hot path: the parser ends it at that length
    body = io.BytesIO()  # gives its bytes away without a copy
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
    """Of a path. Escaping does not help: servers and proxies take it as a step and would answer for something else."""
    message = f"'{model}' is not a valid model name."
    return Answer(Verdict.FINAL, code="model_not_found", message=message, reason="a model that cannot be named")


def _without_answer(error: Exception, timeout: float) -> Answer:
    """Args: ``timeout`` is how long an answer was waited for, in seconds."""
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
    # Our words: an exception's own text may hold addresses and certificates.
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(error.os_error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error.os_error, ConnectionRefusedError):
        return "connection refused"
    return "connection failed"
