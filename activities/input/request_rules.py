"""Checks the request lines of an input. Only the first error of a line is reported."""

from __future__ import annotations

import hashlib
import logging
from difflib import get_close_matches
from typing import Final, NamedTuple

import msgspec

from activities.input.encodings import line_error
from activities.input.jsonl import BodyMembers, Line, RequestLine, custom_id_of, parse_line
from activities.input.prefixes import BLOCK_BYTES, beginning
from activities.input.quick_lines import quick_line
from activities.raw_json import MAX_DEPTH, MAX_ITEMS, count_items, has_more_members, is_deeper, raw_object
from activities.upstreams.errors import UpstreamUnavailableError
from activities.upstreams.routes import ModelRoutes
from workflows.types import BatchError, BatchSpec

REQUIRED_FIELDS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "/v1/chat/completions": (("model", "string"), ("messages", "array")),
    "/v1/completions": (("model", "string"), ("prompt", "string or array")),
    "/v1/embeddings": (("model", "string"), ("input", "string or array")),
    "/v1/responses": (("model", "string"), ("input", "string or array")),
    "/v1/moderations": (("input", "string or array"),),
    "/v1/messages": (("model", "string"), ("messages", "array"), ("max_tokens", "number")),
}
"""Required members of the body and their JSON types, by endpoint. The engine checks everything else."""

STAND_INS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    # OpenAI: "One of "input" or "previous_response_id" or 'prompt' or 'conversation' must be provided."
    ("/v1/responses", "input"): ("prompt", "previous_response_id", "conversation"),
    ("/v1/embeddings", "input"): ("messages",),  # vLLM, for models that embed images
}
"""Members of the body that may replace a required member."""

QUOTED_LENGTH: Final = 100
"""Maximum characters of a client's text in an error message."""


MAX_MODEL_LENGTH: Final = 512
"""Maximum characters of a model name. A batch's names are kept in memory, and a single one enters Temporal."""
MAX_MODELS: Final = 1000
"""Maximum number of models in one batch."""
MODELS_NAMED: Final = 20
"""Maximum number of available models that the error for an unknown model lists."""
MAX_ADVISED: Final = 20
"""Maximum number of unknown models in one input for which similar available models are searched."""
MAX_BODY_MEMBERS: Final = 10_000
NOT_JSON: Final = "invalid_json_line"
SHORT_ID: Final = 40
"""Maximum characters of a ``custom_id`` that is kept in memory itself; of longer ones, a digest is kept."""
_TYPES: Final = {b'"': "string", b"{": "object", b"[": "array", b"t": "boolean", b"f": "boolean", b"n": "null"}
_FIRST_BYTES: Final = {"string": (b'"',), "array": (b"[",), "number": tuple(bytes([byte]) for byte in b"-0123456789")}
_NO_STREAM: Final = frozenset({b"false", b"null", b"0", b"0.0", b'""', b"[]", b"{}"})
_log = logging.getLogger(__name__)


class _Body(BodyMembers):
    model: msgspec.Raw = msgspec.Raw(b"")
    previous_response_id: msgspec.Raw = msgspec.Raw(b"")
    conversation: msgspec.Raw = msgspec.Raw(b"")

    def has(self, name: str) -> bool:
        raw: msgspec.Raw = getattr(self, name)
        return bool(raw) and _type_of(raw) != "null"


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_string = msgspec.json.Decoder(str).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _RefusedError(Exception):
    def __init__(self, code: str, message: str, param: str | None) -> None:
        self.code, self.message, self.param = code, message, param


class _WrongEncodingError(_RefusedError):
    """Reported only once for an input, because each of its lines may have the wrong encoding."""


class CheckedLine(NamedTuple):
    custom_id: str
    """The ``custom_id``, or "" if the line has no valid one."""
    error: BatchError | None
    """The error of the line, or ``None`` if it is valid."""
    upstream: int = 0
    """Index of its upstream in the routes."""
    beginning: bytes = b""
    """The beginning of its prompt, if its upstream may be sent requests in the order of their prefixes."""


class LineChecker:
    """Checks the lines of one input in order, including what must be unique or equal across lines."""

    def __init__(self, spec: BatchSpec, routes: ModelRoutes) -> None:
        self._endpoint = spec.endpoint
        self._max_requests = spec.max_requests
        self._mixed_models = spec.mixed_models
        self._any_model = spec.unknown_model == "line"
        self._routes = routes
        self._urls = (spec.endpoint, spec.endpoint.removeprefix("/v1"))
        self._required = [
            (name, tuple(byte for kind in kinds.split(" or ") for byte in _FIRST_BYTES[kind]))
            for name, kinds in REQUIRED_FIELDS.get(spec.endpoint, ())
            if name != "model"
        ]
        self._plain: dict[str | msgspec.UnsetType, int] = {}  # those of ``models`` that need no other check
        self._custom_ids: set[bytes | str] = set()
        self._encoding_is_named = False
        self._advised: dict[str, str] = {}
        self.models: set[str] = set()
        """The models that the lines checked so far name."""
        self.embedding_inputs = 0
        self.refused = 0
        """Number of invalid lines so far, including those whose error is not reported again."""

    @property
    def only_model(self) -> str | None:
        """The model of all lines checked so far, if they name only one."""
        return next(iter(self.models)) if len(self.models) == 1 else None

    def check(self, line: Line) -> CheckedLine:
        """Check a line. Raises ``UpstreamUnavailableError`` if its route depends on upstreams that do not answer."""
        return (line.data and self._check_quickly(line.data)) or self._check_closely(line)

    def _check_quickly(self, data: bytes) -> CheckedLine | None:
        """Return the result for a clearly valid line, or ``None`` if it needs a closer check."""
        request = quick_line(data)
        if request is None or request.method != "POST" or request.url not in self._urls or not request.custom_id:
            return None
        body = request.body
        upstream = self._plain.get(body.model)
        if upstream is None or body.stream:
            return None
        for name, first_bytes in self._required:
            if not bytes(getattr(body, name)).startswith(first_bytes):
                return None
        is_embedding = self._endpoint == "/v1/embeddings"
        if (is_embedding and not bytes(body.input).startswith(b'"')) or self._is_known(request.custom_id):
            return None
        self.embedding_inputs += is_embedding
        return CheckedLine(
            request.custom_id, None, upstream, self._beginning(upstream, body.model or "", body, len(data))
        )

    def _beginning(self, upstream: int, model: str, body: BodyMembers, size: int) -> bytes:
        """Return :attr:`CheckedLine.beginning`. Args: ``size`` is that of the JSON in which the body was."""
        return beginning(model, body) if size >= BLOCK_BYTES and upstream in self._routes.by_prefix else b""

    def _check_closely(self, line: Line) -> CheckedLine:
        custom_id = ""
        try:
            if line.data is None:
                return self._check_too_long(line)
            request = _parse(line.data)
            custom_id = _string(request.custom_id, "custom_id")
            if not custom_id:
                raise _RefusedError("invalid_value", "Invalid 'custom_id': it must not be empty.", "custom_id")
            self._check_target(request)
            self._check_unique(custom_id)
            upstream, begins = self._check_body(request.body)
        except _RefusedError as refused:
            self.refused += 1
            if isinstance(refused, _WrongEncodingError):
                if self._encoding_is_named:  # reported once per file
                    return CheckedLine(custom_id, None)
                self._encoding_is_named = True
            error = BatchError(code=refused.code, message=refused.message, param=refused.param, line=line.number)
            return CheckedLine(custom_id, error)
        except (UpstreamUnavailableError, MemoryError):
            raise
        except Exception as error:
            # This is a bug. If it were raised, the input would be checked again and again until the batch expires.
            _log.exception("a line of an input cannot be checked")
            message = f"This line could not be checked, by a fault of the server ({type(error).__name__})."
            return CheckedLine(custom_id, BatchError(code="server_error", message=message, line=line.number))
        return CheckedLine(custom_id, None, upstream, begins)

    def _check_too_long(self, line: Line) -> CheckedLine:
        """Accept a line that is too long as a request, which is not sent and becomes an error line."""
        raw = custom_id_of(line)
        custom_id = _decode_string(raw) if raw else ""
        if custom_id:
            self._check_unique(custom_id)
        return CheckedLine(custom_id, None, self._routes.default_upstream)

    def _check_target(self, request: RequestLine) -> None:
        method = _string(request.method, "method")
        if method != "POST":
            message = f"Invalid value: '{_quoted(method)}'. Supported values are: 'POST'."
            raise _RefusedError("invalid_value", message, "method")
        url = _string(request.url, "url")
        # Azure's clients omit the version.
        if url != self._endpoint and f"/v1{url}" != self._endpoint:
            message = f"The URL '{_quoted(url)}' does not match the batch endpoint '{self._endpoint}'."
            raise _RefusedError("invalid_url", message, "url")

    def _is_known(self, custom_id: str) -> bool:
        """Remember a ``custom_id``, and return whether an earlier line has it."""
        key: bytes | str = custom_id
        if len(custom_id) > SHORT_ID:  # its length has no limit
            key = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        before = len(self._custom_ids)
        self._custom_ids.add(key)
        return len(self._custom_ids) == before

    def _check_unique(self, custom_id: str) -> None:
        if self._is_known(custom_id):
            message = (
                f"The custom_id '{_quoted(custom_id)}' duplicates that of another request in the file; "
                "each must be unique."
            )
            raise _RefusedError("duplicate_custom_id", message, "custom_id")

    def _check_body(self, raw: msgspec.Raw) -> tuple[int, bytes]:
        """Return the index of the request's upstream, and :attr:`CheckedLine.beginning`."""
        if not raw:
            raise _missing("body")
        if _type_of(raw) != "object":
            raise _wrong_type("body", "object", raw)
        if has_more_members(raw, MAX_BODY_MEMBERS):
            message = f"Invalid 'body': too many properties. Expected at most {MAX_BODY_MEMBERS}."
            raise _RefusedError("object_above_max_properties", message, "body")
        body = _decode_body(raw)
        for name, expected in REQUIRED_FIELDS.get(self._endpoint, ()):
            if not body.has(name):
                if any(map(body.has, STAND_INS.get((self._endpoint, name), ()))):
                    continue
                raise _missing(f"body.{name}", name)
            member: msgspec.Raw = getattr(body, name)
            if _type_of(member) not in expected.split(" or "):
                raise _wrong_type(f"body.{name}", expected, member)
        if body.stream and bytes(body.stream) not in _NO_STREAM:  # engines accept 1 and "true" as true
            prefix = "Chat Completions: " if self._endpoint == "/v1/chat/completions" else ""
            message = f"{prefix}Streaming is not supported in the Batch API."
            raise _RefusedError("streaming_unsupported", message, "body.stream")
        model = _model_of(body)
        upstream = self._check_model(model) if model is not None else self._routes.default_upstream
        if self._routes.has_refusals(upstream):
            refusal = self._routes.refusal(upstream, self._endpoint, raw_object(raw) or {})
            if refusal:
                raise _RefusedError("invalid_value", refusal.message, f"body.{refusal.param}")
        if self._endpoint == "/v1/embeddings":
            self.embedding_inputs += _count_inputs(body.input, self._max_requests)
        return upstream, self._beginning(upstream, model or "", body, len(raw))

    def _check_model(self, model: str) -> int:
        if len(model) > MAX_MODEL_LENGTH:
            text = f"a string with maximum length {MAX_MODEL_LENGTH}, but got a string with length {len(model)}"
            message = f"Invalid 'body.model': string too long. Expected {text} instead."
            raise _RefusedError("string_above_max_length", message, "body.model")
        upstream = self._routes.find(model)
        if upstream is None:
            upstream = self._routes.default_upstream if self._any_model else None
        if upstream is None:
            message = f"The provided model '{_quoted(model)}' is not supported by the Batch API.{self._advice(model)}"
            raise _RefusedError("model_not_found", message, "body.model")
        if not self._mixed_models and self.models and model not in self.models:
            message = (
                f"The model '{_quoted(model)}' differs from the model of the rest of the batch; "
                "a batch must be for a single model."
            )
            raise _RefusedError("mismatched_model", message, "body.model")
        if model not in self.models and len(self.models) >= MAX_MODELS:
            raise _RefusedError("invalid_request", f"A batch may name at most {MAX_MODELS} models.", "body.model")
        self.models.add(model)
        if not self._routes.has_refusals(upstream):
            self._plain[model] = upstream
        return upstream

    def _advice(self, model: str) -> str:
        """Return text for an error message: the available models, and the one that is most similar."""
        if len(self._advised) >= MAX_ADVISED and model not in self._advised:
            return ""
        if model not in self._advised:
            known = self._routes.known()
            like = get_close_matches(model, known, 1)
            more = f" and {len(known) - MODELS_NAMED} more" if len(known) > MODELS_NAMED else ""
            names = ", ".join(f"'{_quoted(name)}'" for name in known[:MODELS_NAMED])
            meant = f" Did you mean '{_quoted(like[0])}'?" if like else ""
            self._advised[model] = f"{meant} Available models: {names}{more}." if known else ""
        return self._advised[model]


def _parse(data: bytes) -> RequestLine:
    try:
        request = parse_line(data)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        if message := line_error(data):
            raise _WrongEncodingError(NOT_JSON, message, None) from None
        raise _not_json() from None
    if is_deeper(data, MAX_DEPTH):
        raise _too_deep()
    return request


def _too_deep() -> _RefusedError:
    message = f"This line has too many arrays and objects in each other: at most {MAX_DEPTH} levels may be."
    return _RefusedError(NOT_JSON, message, None)


def _not_json() -> _RefusedError:
    return _RefusedError(NOT_JSON, "This line is not parseable as valid JSON.", None)


def model_of(body: msgspec.Raw) -> str | None:
    """Return the model that a valid body names, or ``None`` if it names none as a string."""
    return _model_of(_decode_body(body))


def _model_of(body: _Body) -> str | None:
    return _string(body.model, "body.model") if body.model and _type_of(body.model) == "string" else None


def _string(raw: msgspec.Raw, param: str) -> str:
    if not raw:
        raise _missing(param)
    if _type_of(raw) != "string":
        raise _wrong_type(param, "string", raw)
    return _decode_string(raw)


def _missing(param: str, name: str | None = None) -> _RefusedError:
    return _RefusedError("missing_required_parameter", f"Missing required parameter: '{name or param}'.", param)


def _wrong_type(param: str, expected: str, raw: msgspec.Raw) -> _RefusedError:
    message = f"Invalid type for '{param}': expected {_article(expected)}, but got {_article(_type_of(raw))} instead."
    return _RefusedError("invalid_type", message, param)


def _article(type_name: str) -> str:
    if type_name == "null":
        return type_name
    return " or ".join(("an " if name[0] in "aeiou" else "a ") + name for name in type_name.split(" or "))


def _type_of(raw: msgspec.Raw) -> str:
    return _TYPES.get(bytes(memoryview(raw)[:1]), "number")


def _count_inputs(raw: msgspec.Raw, maximum: int) -> int:
    """Return the number of inputs of an embedding request. A text or a list of tokens is one input.

    Beyond ``maximum``, the count may be too low.
    """
    if _type_of(raw) != "array":
        return 1
    data = bytes(raw)
    if data.count(b",") <= MAX_ITEMS:
        items = _decode_items(raw)
        return 1 if items and _type_of(items[0]) == "number" else len(items)
    return 1 if data[1:].lstrip()[:1] not in (b'"', b"[", b"{") else count_items(data, maximum)


def _quoted(text: str) -> str:
    return text if len(text) <= QUOTED_LENGTH else text[: QUOTED_LENGTH - 1] + "…"
