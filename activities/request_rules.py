"""What a request line must be (SPEC.md section 5). One error per offending line: its first."""

from __future__ import annotations

import hashlib
import json
from typing import Final, NamedTuple

import msgspec

from activities.jsonl import MAX_LINE_BYTES, Line, RequestLine, parse_line
from activities.lenient_json import (
    MAX_ITEMS,
    count_items,
    has_more_members,
    loads_object,
    printable,
    raw_members,
    raw_object,
)
from activities.model_routes import ModelRoutes
from workflows.types import BatchError, BatchSpec

REQUIRED_FIELDS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "/v1/chat/completions": (("model", "string"), ("messages", "array")),
    "/v1/completions": (("model", "string"), ("prompt", "string or array")),
    "/v1/embeddings": (("model", "string"), ("input", "string or array")),
    "/v1/responses": (("model", "string"), ("input", "string or array")),
    "/v1/moderations": (("input", "string or array"),),
}
"""Members of the body that must be there, with their JSON types. Beyond this a body is the engine's business."""

STAND_INS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    # OpenAI: "One of "input" or "previous_response_id" or 'prompt' or 'conversation' must be provided."
    ("/v1/responses", "input"): ("prompt", "previous_response_id", "conversation"),
    ("/v1/embeddings", "input"): ("messages",),  # vLLM, for models that embed images
}
"""Members of the body of which one may be there instead of a required one."""

QUOTED_LENGTH: Final = 100
"""Of a client's text inside a message."""


MAX_MODEL_LENGTH: Final = 512
"""Characters of a model's name. The names of a batch are held in memory, and the only one crosses Temporal."""
MAX_MODELS: Final = 1000
"""In one batch. Each attempt at a shard of a batch over several upstreams reads which model goes where."""
MAX_BODY_MEMBERS: Final = 10_000
_SPARE_FRAMES: Final = 200
"""How much deeper in calls than this check a line can still be parsed: what is nested deeply passes here or nowhere."""
_MANY_OPENINGS: Final = 400


class _Body(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"")
    stream: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    previous_response_id: msgspec.Raw = msgspec.Raw(b"")
    conversation: msgspec.Raw = msgspec.Raw(b"")

    def has(self, name: str) -> bool:
        raw: msgspec.Raw = getattr(self, name)
        return bool(raw) and _type_of(raw) != "null"


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_string = msgspec.json.Decoder(str).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Refused(Exception):
    def __init__(self, code: str, message: str, param: str | None) -> None:
        self.code, self.message, self.param = code, message, param


class CheckedLine(NamedTuple):
    custom_id: str
    """As far as the line has one."""
    error: BatchError | None
    """What is wrong with it."""
    upstream: int = 0
    """The place of the one that takes it, among the routes."""


class LineChecker:
    """Checks the lines of one input in order, remembering what must not repeat or differ between them."""

    def __init__(self, spec: BatchSpec, routes: ModelRoutes) -> None:
        self._endpoint = spec.endpoint
        self._max_requests = spec.max_requests
        self._mixed_models = spec.mixed_models
        self._any_model = spec.unknown_model == "line"
        self._routes = routes
        self._custom_ids: set[bytes] = set()
        self.models: dict[str, int] = {}
        """Of all lines checked so far, each with its upstream's place."""
        self.embedding_inputs = 0

    @property
    def only_model(self) -> str | None:
        """The model of all lines checked so far, if it is one, for people to read."""
        return printable(next(iter(self.models))) if len(self.models) == 1 else None

    def check(self, line: Line) -> CheckedLine:
        """Raises ``UpstreamUnavailable``: only upstreams that do not answer could say who takes it."""
        custom_id = ""
        try:
            request = _parse(line)
            custom_id = _string(request.custom_id, "custom_id")
            self._check_target(request)
            self._check_unique(custom_id)
            upstream = self._check_body(request.body)
        except _Refused as refused:
            error = BatchError(code=refused.code, message=refused.message, param=refused.param, line=line.number)
            return CheckedLine(custom_id, error)
        return CheckedLine(custom_id, None, upstream)

    def _check_target(self, request: RequestLine) -> None:
        method = _string(request.method, "method")
        if method != "POST":
            message = f"Invalid value: '{_quoted(method)}'. Supported values are: 'POST'."
            raise _Refused("invalid_value", message, "method")
        url = _string(request.url, "url")
        # Azure's clients leave the version out.
        if url != self._endpoint and f"/v1{url}" != self._endpoint:
            message = f"The URL '{_quoted(url)}' does not match the batch endpoint '{self._endpoint}'."
            raise _Refused("invalid_url", message, "url")

    def _check_unique(self, custom_id: str) -> None:
        # Digests, because nothing bounds the length of an id.
        digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._custom_ids:
            message = (
                f"The custom_id '{_quoted(custom_id)}' duplicates that of another request in the file; "
                "each must be unique."
            )
            raise _Refused("duplicate_custom_id", message, "custom_id")
        self._custom_ids.add(digest)

    def _check_body(self, raw: msgspec.Raw) -> int:
        """The place of the upstream that takes it."""
        if not raw:
            raise _missing("body")
        if _type_of(raw) != "object":
            raise _wrong_type("body", "object", raw)
        if has_more_members(raw, MAX_BODY_MEMBERS):
            message = f"Invalid 'body': too many properties. Expected at most {MAX_BODY_MEMBERS}."
            raise _Refused("object_above_max_properties", message, "body")
        try:
            body = _parse_body(raw)
        except ValueError:
            raise _not_json() from None
        for name, expected in REQUIRED_FIELDS.get(self._endpoint, ()):
            if not body.has(name):
                if any(map(body.has, STAND_INS.get((self._endpoint, name), ()))):
                    continue
                raise _missing(f"body.{name}", name)
            member: msgspec.Raw = getattr(body, name)
            if _type_of(member) not in expected.split(" or "):
                raise _wrong_type(f"body.{name}", expected, member)
        if body.stream and bytes(body.stream) == b"true":
            prefix = "Chat Completions: " if self._endpoint == "/v1/chat/completions" else ""
            message = f"{prefix}Streaming is not supported in the Batch API."
            raise _Refused("streaming_unsupported", message, "body.stream")
        model = _model_of(body)
        upstream = self._check_model(model) if model is not None else self._routes.stand_in
        if self._routes.has_refusals(upstream):
            refusal = self._routes.refusal(upstream, self._endpoint, raw_object(raw) or {})
            if refusal:
                raise _Refused("invalid_value", refusal.message, f"body.{refusal.param}")
        if self._endpoint == "/v1/embeddings":
            self.embedding_inputs += _count_inputs(body.input, self._max_requests)
        return upstream

    def _check_model(self, model: str) -> int:
        if len(model) > MAX_MODEL_LENGTH:
            text = f"a string with maximum length {MAX_MODEL_LENGTH}, but got a string with length {len(model)}"
            message = f"Invalid 'body.model': string too long. Expected {text} instead."
            raise _Refused("string_above_max_length", message, "body.model")
        upstream = self._routes.find(model)
        if upstream is None:
            upstream = self._routes.stand_in if self._any_model else None
        if upstream is None:
            message = f"The provided model '{_quoted(model)}' is not supported by the Batch API."
            raise _Refused("model_not_found", message, "body.model")
        if not self._mixed_models and self.models and model not in self.models:
            message = (
                f"The model '{_quoted(model)}' differs from the model of the rest of the batch; "
                "a batch must be for a single model."
            )
            raise _Refused("mismatched_model", message, "body.model")
        if model not in self.models and len(self.models) >= MAX_MODELS:
            raise _Refused("invalid_request", f"A batch may name at most {MAX_MODELS} models.", "body.model")
        self.models[model] = upstream
        return upstream


def _parse(line: Line) -> RequestLine:
    if line.data is None:
        message = f"This line has {line.length} bytes; a line may have at most {MAX_LINE_BYTES}."
        raise _Refused("invalid_request", message, None)
    try:
        openings = line.data.count(b"[") + line.data.count(b"{")
        return _parse_at_depth(line.data, _SPARE_FRAMES if openings > _MANY_OPENINGS else 0)
    except ValueError:
        raise _not_json() from None


def _parse_at_depth(data: bytes, frames: int) -> RequestLine:
    return _parse_at_depth(data, frames - 1) if frames else parse_line(data)


def _not_json() -> _Refused:
    return _Refused("invalid_json_line", "This line is not parseable as valid JSON.", None)


def model_of(body: msgspec.Raw) -> str | None:
    """The model that a valid body names, if it names one by a text."""
    return _model_of(_parse_body(body))


def _model_of(body: _Body) -> str | None:
    return _string(body.model, "body.model") if body.model and _type_of(body.model) == "string" else None


def _parse_body(raw: msgspec.Raw) -> _Body:
    """Raises ValueError: only the standard library can read it, and not write it again."""
    try:
        return _decode_body(raw)
    except msgspec.DecodeError:
        if raw_object(raw) is None:
            raise ValueError("not a body that can be written again") from None
        return _Body(**raw_members(loads_object(bytes(raw)) or {}, _Body))


def _string(raw: msgspec.Raw, param: str) -> str:
    if not raw:
        raise _missing(param)
    if _type_of(raw) != "string":
        raise _wrong_type(param, "string", raw)
    try:
        return _decode_string(raw)
    except msgspec.DecodeError:
        return json.loads(bytes(raw))  # with half of a surrogate pair


def _missing(param: str, name: str | None = None) -> _Refused:
    return _Refused("missing_required_parameter", f"Missing required parameter: '{name or param}'.", param)


def _wrong_type(param: str, expected: str, raw: msgspec.Raw) -> _Refused:
    message = f"Invalid type for '{param}': expected {_article(expected)}, but got {_article(_type_of(raw))} instead."
    return _Refused("invalid_type", message, param)


def _article(type_name: str) -> str:
    if type_name == "null":
        return type_name
    return " or ".join(("an " if name[0] in "aeiou" else "a ") + name for name in type_name.split(" or "))


def _type_of(raw: msgspec.Raw) -> str:
    first = bytes(memoryview(raw)[:1])
    names = {b'"': "string", b"{": "object", b"[": "array", b"t": "boolean", b"f": "boolean", b"n": "null"}
    return names.get(first, "number")


def _count_inputs(raw: msgspec.Raw, most: int) -> int:
    """Inputs of an embedding request: a text or a list of tokens is one, a list of either is several.

    Above ``most`` they are not all counted.
    """
    if _type_of(raw) != "array":
        return 1
    data = bytes(raw)
    if data.count(b",") <= MAX_ITEMS:
        items = _decode_items(raw)
        return 1 if items and _type_of(items[0]) == "number" else len(items)
    return 1 if data[1:].lstrip()[:1] not in (b'"', b"[", b"{") else count_items(data, most)


def _quoted(text: str) -> str:
    return printable(text if len(text) <= QUOTED_LENGTH else text[: QUOTED_LENGTH - 1] + "…")
