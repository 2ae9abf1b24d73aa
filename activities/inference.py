"""The client of the inference server, and what its answers mean.

The one module that knows which transport sends the bytes. It retries nothing: Temporal owns every retry.
"""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, Final

import aiohttp
import msgspec
from yarl import URL

from activities.dialects import DIALECTS
from activities.lenient_json import loads_object, raw_bytes, raw_object
from activities.upstreams import Upstream
from workflows.contract import MAX_RETRY_DELAY
from workflows.types import Usage

CONNECT_TIMEOUT: Final = 10.0
MODEL_LIST_TIMEOUT: Final = 5.0
MODEL_LIST_BYTES: Final = 8 << 20

# uvicorn, which most engines use, closes a connection after 5 s idle. Ours must be the shorter patience: a
# request sent into a closing connection is lost, and nobody can say whether the engine has seen it.
KEEP_ALIVE: Final = 4.0

_USER_AGENT: Final = f"everbatch/{version('everbatch')}"
_RETRIED: Final = frozenset({408, 409, 425})
_OVERLOADED: Final = frozenset({429, 503})


class Verdict(Enum):
    SUCCESS = "success"
    FINAL = "final"
    """The engine refuses the request: trying again would not help."""
    RETRY = "retry"
    """Something went wrong with this request; counted, and after ``max_attempts`` of them final."""
    OVERLOADED = "overloaded"
    """The engine asks for less: wait, uncounted."""
    UNREACHABLE = "unreachable"
    """Nothing can be sent at all (connection refused, wrong key): wait, uncounted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of sending one request."""

    verdict: Verdict
    status: int = 0
    """Zero where there was no HTTP answer."""
    body: bytes = b""
    """A JSON object on one line; empty where there was no HTTP answer or it had none."""
    request_id: str = ""
    usage: Usage | None = None
    code: str = ""
    """For the error line: ``request_timeout``, ``connection_error``, ``answer_too_large`` or the engine's own."""
    message: str = ""
    """For the error line. May hold the engine's words, so it stays out of Temporal."""
    reason: str = ""
    """For people who wait, in the Temporal UI and ``progress``: our words only."""
    retry_after: float | None = None


class UpstreamUnavailable(Exception):
    """The inference server does not answer."""


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Tokens = 0


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Tokens = 0


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0
    input_tokens: _Tokens = 0  # the names of /v1/responses
    output_tokens: _Tokens = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _CompletionDetails | None = None


class _WithUsage(msgspec.Struct):
    usage: _Usage | None = None


class _JsonObject(msgspec.Struct):
    pass


class _ModelId(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelId]


_decode_usage = msgspec.json.Decoder(_WithUsage).decode
_decode_object = msgspec.json.Decoder(_JsonObject).decode
_NO_USAGE: Final = Usage()


def read_usage(body: bytes) -> Usage | None:
    """Token counts of an answer, zero where it names none; ``None`` if it is not a JSON object.

    This is the one time that an answer is parsed; it is stored as the bytes that came.
    """
    try:
        if not body.isascii():
            body.decode()  # the decoder below takes any bytes in strings that it skips
        usage = _decode_usage(body).usage
    except msgspec.ValidationError:
        try:
            _decode_object(body)  # an object, with a `usage` of a shape of its own
        except (msgspec.DecodeError, RecursionError):
            return None
        return _NO_USAGE
    except UnicodeDecodeError:
        return None
    except (msgspec.DecodeError, RecursionError):
        value = loads_object(body)
        if value is None:
            return None
        usage = _usage_of(value)
    if usage is None:
        return _NO_USAGE
    cached = usage.prompt_tokens_details or usage.input_tokens_details
    reasoning = usage.completion_tokens_details or usage.output_tokens_details
    return Usage.model_construct(
        input_tokens=usage.prompt_tokens or usage.input_tokens or 0,
        cached_tokens=(cached.cached_tokens or 0) if cached else 0,
        output_tokens=usage.completion_tokens or usage.output_tokens or 0,
        reasoning_tokens=(reasoning.reasoning_tokens or 0) if reasoning else 0,
    )


def _usage_of(answer: dict[str, Any]) -> _Usage | None:
    try:
        return msgspec.convert({"usage": answer.get("usage")}, _WithUsage).usage
    except msgspec.ValidationError:
        return None


def one_line(body: bytes) -> bytes:
    """Valid JSON on one line. A line end in JSON is always white space: inside strings it must be escaped."""
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    return body.strip()


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``Retry-After`` (seconds or a date); ``None`` if neither helps.

    Args:
        headers: names in lower case, or a mapping that does not mind.
        now: Unix time.
    """
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif (value := headers.get("retry-after", "")) and value.replace(".", "", 1).isdigit():
            seconds = float(value)
        elif value:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return min(seconds, MAX_RETRY_DELAY.total_seconds()) if seconds > 0 else None


def classify(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
    """The meaning of an HTTP answer: the table of DESIGN.md section 3."""
    request_id = headers.get("x-request-id", "")
    if not request_id.isascii():
        request_id = ""
    usage = read_usage(body)
    if 200 <= status < 300:
        if usage is not None:
            return Answer(Verdict.SUCCESS, status, one_line(body), request_id, usage)
        message = "The inference server's answer was not a JSON object."
        return Answer(
            Verdict.RETRY, code="server_error", message=message, reason=f"HTTP {status} with a body that is not JSON"
        )
    if status in _OVERLOADED:
        verdict = Verdict.OVERLOADED
    elif status == HTTPStatus.UNAUTHORIZED or status < 400:  # a wrong key, or a redirect: a wrong address
        verdict = Verdict.UNREACHABLE
    elif status in _RETRIED or status >= 500:
        verdict = Verdict.RETRY
    else:
        verdict = Verdict.FINAL
    code, message = _error_of(status, body if usage is not None else b"")
    if usage is None:
        body = _wrapped(body)
    wait = retry_after(headers, now) if verdict is not Verdict.FINAL else None
    return Answer(
        verdict, status, one_line(body), request_id, None, code, message, reason=status_text(status), retry_after=wait
    )


def status_text(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


class _ErrorDetail(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


def _error_of(status: int, body: bytes) -> tuple[str, str]:
    """Code and message of an error answer: OpenAI's envelope, or the bare object that older engines send."""
    detail = _ErrorDetail()
    for shape in (_ErrorBody, _ErrorDetail):
        try:
            decoded = msgspec.json.decode(body, type=shape)
        except (msgspec.DecodeError, RecursionError):
            continue
        detail = decoded.error if isinstance(decoded, _ErrorBody) else decoded
        break
    code = str(detail.code or detail.type or f"http_{status}")
    return code, detail.message or f"The inference server answered {status_text(status)}."


def _wrapped(body: bytes) -> bytes:
    """An error answer that is no JSON object, as one (SPEC.md section 6)."""
    message = body[:4096].decode("utf-8", "replace").strip()
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return msgspec.json.encode({"error": error})


class InferenceClient:
    """Sends requests to one upstream. Build it on a running event loop; close it at the end."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._dialect = DIALECTS[upstream.dialect]
        # The hot path: then the body goes out as the bytes that it came as.
        self._as_it_came = not (upstream.aliases or self._dialect.body or self._dialect.path_has_model)
        self._targets: dict[tuple[str, int], URL] = {}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": _USER_AGENT}
        if key := upstream.key.get_secret_value():
            headers |= self._dialect.auth(key)
        extra = {name: value.get_secret_value() for name, value in upstream.headers.items()}
        names = {name.lower() for name in extra}
        headers = {name: value for name, value in headers.items() if name.lower() not in names} | extra
        self._session = aiohttp.ClientSession(
            headers=headers,
            # How many go out at once is the limiter's business; a second limit here would only hide its queue.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE, ttl_dns_cache=30),
            timeout=aiohttp.ClientTimeout(total=upstream.timeout, sock_connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def send(self, endpoint: str, body: bytes, replica: int = 0) -> Answer:
        """Send a request once. Cancelling closes its connection, so that the engine stops generating."""
        model = ""
        if not self._as_it_came:
            model, body = self._in_dialect(endpoint, body)
        try:
            target = self._target(endpoint, model, replica)
            async with self._session.post(target, data=body, allow_redirects=False) as response:
                data = await _read(response, self.upstream.max_answer_bytes)
                if data is not None:
                    return classify(response.status, response.headers, data, time.time())
                return _too_large(response.status, self.upstream.max_answer_bytes)
        except aiohttp.ConnectionTimeoutError:
            return _unreachable("no connection in time")
        except TimeoutError:
            reason = f"no answer within {self.upstream.timeout:g} s"
            message = f"The inference server gave {reason}."
            return Answer(Verdict.RETRY, code="request_timeout", message=message, reason=reason)
        except aiohttp.ClientConnectorError as error:
            return _unreachable(_connection_reason(error))
        except (aiohttp.ClientError, ConnectionError) as error:
            reason = "connection lost" if isinstance(error, aiohttp.ClientConnectionError) else "broken answer"
            message = "The connection to the inference server was lost before its answer was complete."
            return Answer(Verdict.RETRY, code="connection_error", message=message, reason=reason)

    def _in_dialect(self, endpoint: str, body: bytes) -> tuple[str, bytes]:
        """The engine's name of the model, where the path needs it, and the body as the engine wants it."""
        members = raw_object(body)
        if members is None:
            return "", body  # for the engine to refuse
        model = _text(members.get("model"))
        if (name := self.upstream.aliases.get(model)) is not None:
            model = name
            members["model"] = msgspec.Raw(msgspec.json.encode(name))
        elif not self._dialect.body:
            return model if self._dialect.path_has_model else "", body
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

    async def get_models_raw(self) -> tuple[int, bytes]:
        """Status and body of the server's model list, by the first replica that answers.

        Raises:
            UpstreamUnavailable: none does.
        """
        timeout = aiohttp.ClientTimeout(total=MODEL_LIST_TIMEOUT)
        for url in self.upstream.urls:
            try:
                async with self._session.get(f"{url}/models", timeout=timeout, allow_redirects=False) as response:
                    if (data := await _read(response, MODEL_LIST_BYTES)) is not None:
                        return response.status, data
            except (TimeoutError, aiohttp.ClientError, OSError):
                continue
        raise UpstreamUnavailable(f"the inference server at {', '.join(self.upstream.urls)} does not answer")

    async def list_models(self) -> frozenset[str] | None:
        """Names of the server's models, or ``None`` where it cannot be asked: then nothing is known, not "none"."""
        try:
            status, body = await self.get_models_raw()
            if status != HTTPStatus.OK:
                return None
            names = {model.id for model in msgspec.json.decode(body, type=_ModelList).data}
        except (UpstreamUnavailable, msgspec.DecodeError, RecursionError):
            return None
        # Ollama lists `name:latest` and answers to `name`.
        return frozenset(names | {name.removesuffix(":latest") for name in names}) or None


def _text(raw: msgspec.Raw | None) -> str:
    try:
        return msgspec.json.decode(raw, type=str) if raw is not None else ""
    except msgspec.DecodeError:
        return ""


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes | None:
    """The body, unpacked; ``None`` where it has more than ``most`` bytes, of which not many more are read."""
    is_packed = "content-encoding" in response.headers or "transfer-encoding" in response.headers
    if not is_packed and (response.content_length or most + 1) <= most:
        return await response.read()  # the hot path: the parser ends it at that length
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > most:
            return None
    return bytes(body)


def _too_large(status: int, most: int) -> Answer:
    reason = f"HTTP {status} with a body of more than {most} bytes"
    return Answer(Verdict.RETRY, code="answer_too_large", message=f"The answer was {reason}.", reason=reason)


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
