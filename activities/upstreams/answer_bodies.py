"""Parses the bodies of responses: whether they are a result, and their token usage.

This module knows nothing of retries. A body is parsed once, and stored as received, but in ASCII and on one line.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated, Final, NamedTuple

import msgspec

from activities.raw_json import escaped, is_null, raw_object, repaired
from workflows.error_summary import is_code
from workflows.types import Usage

_NO_USAGE: Final = Usage()
_TOO_LONG: Final = re.compile(
    r"(maximum|exceeds?\b.*|available|model'?s) context (length|size|window)|maximum model length|max_model_len",
    re.IGNORECASE,
)
"""The messages with which vLLM, SGLang, llama.cpp, NIM and TGI reject a prompt that has too many tokens."""
_UNSUPPORTED: Final = re.compile(r"\b(is|are) not supported\b|\bdoes not support\b|\bunsupported\b", re.IGNORECASE)
"""The message with which llama.cpp says, with HTTP status 500, that its model does not accept images."""

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Tokens = 0


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Tokens = 0


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0
    input_tokens: _Tokens = 0  # this name and the next are those of /v1/responses
    output_tokens: _Tokens = 0
    # /v1/messages does not include the next two in input_tokens.
    cache_read_input_tokens: _Tokens = 0
    cache_creation_input_tokens: _Tokens = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _CompletionDetails | None = None


_ABSENT: Final = msgspec.Raw(b"")


class _Members(msgspec.Struct):
    """The members that distinguish a result from an error."""

    error: msgspec.Raw = _ABSENT
    choices: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    results: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT


class _Answer(_Members):
    usage: _Usage | None = None


class _OddUsage(_Members):
    usage: msgspec.Raw = _ABSENT


class _Error(msgspec.Struct):
    message: msgspec.Raw = _ABSENT
    detail: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    code: msgspec.Raw = _ABSENT


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_odd_usage = msgspec.json.Decoder(_OddUsage).decode
_decode_error = msgspec.json.Decoder(_Error).decode
_decode_number = msgspec.json.Decoder(float).decode
_decode_text = msgspec.json.Decoder(str | int).decode


class AnswerBody(NamedTuple):
    """A body that is a JSON object."""

    data: bytes
    """The body in ASCII and on one line."""
    usage: Usage
    """Token counts; zero if the body has none."""
    error_status: int | None
    """If the body is an error instead of a result: the HTTP status in its ``code``, or 500 if it has none."""


def read_body(body: bytes) -> AnswerBody | None:
    """Parse the body of an answer. Returns ``None`` if it is not a JSON object.

    Lone surrogates and bytes that are not UTF-8 become U+FFFD rather than an error: the answer has been paid for.
    """
    try:
        data = escaped(one_line(body))
    except UnicodeDecodeError:
        data = escaped(one_line(body.decode("utf-8", "replace").encode()))
    read = _decode(data)
    if read is None:
        data = repaired(data)
        read = _decode(data)
    if read is None:
        return None
    usage = read.usage
    if usage is None:
        tokens = _NO_USAGE
    elif isinstance(usage, msgspec.Raw):
        tokens = _odd_usage(usage)
    else:
        tokens = _usage(usage)
    return AnswerBody(data, tokens, _error_status(read) if read.error else None)


def _decode(data: bytes) -> _Answer | _OddUsage | None:
    for decode in (_decode_answer, _decode_odd_usage):
        try:
            return decode(data)
        except (msgspec.DecodeError, RecursionError):
            continue
    return None


def one_line(body: bytes) -> bytes:
    """Put valid JSON on one line. A line break in JSON is always white space: inside strings it must be escaped."""
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    return body.strip()


def _usage(usage: _Usage) -> Usage:
    cached = usage.prompt_tokens_details or usage.input_tokens_details
    reasoning = usage.completion_tokens_details or usage.output_tokens_details
    read, created = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    return Usage.model_construct(
        input_tokens=(usage.prompt_tokens or usage.input_tokens or 0) + read + created,
        cached_tokens=(cached.cached_tokens or 0) if cached else read,
        output_tokens=usage.completion_tokens or usage.output_tokens or 0,
        reasoning_tokens=(reasoning.reasoning_tokens or 0) if reasoning else 0,
    )


def _odd_usage(raw: msgspec.Raw) -> Usage:
    """Return the token counts of a ``usage`` object some of whose members are not counts; these become zero."""
    members = raw_object(raw) or {}
    prompt = raw_object(members.get("prompt_tokens_details")) or raw_object(members.get("input_tokens_details")) or {}
    completion = (
        raw_object(members.get("completion_tokens_details")) or raw_object(members.get("output_tokens_details")) or {}
    )
    read, created = (_count(members.get(f"cache_{what}_input_tokens")) for what in ("read", "creation"))
    return Usage.model_construct(
        input_tokens=(_count(members.get("prompt_tokens")) or _count(members.get("input_tokens"))) + read + created,
        cached_tokens=_count(prompt.get("cached_tokens")) if prompt else read,
        output_tokens=_count(members.get("completion_tokens")) or _count(members.get("output_tokens")),
        reasoning_tokens=_count(completion.get("reasoning_tokens")),
    )


def _count(raw: msgspec.Raw | None) -> int:
    """Return a count of tokens, which may be written as ``10.0``, or zero for anything else."""
    try:
        number = _decode_number(raw) if raw is not None else 0.0
    except msgspec.DecodeError:
        return 0
    return int(number) if 0 <= number <= 1 << 53 and number.is_integer() else 0


def _error_status(answer: _Members) -> int | None:
    """Return the HTTP status of the error that a body holds instead of a result, or ``None`` if it holds a result."""
    error = bytes(answer.error)
    if error[:1] not in (b"{", b'"') or error == b'""':
        return None  # every result of /v1/responses has "error": null
    has_null_choices = bool(answer.choices) and is_null(answer.choices)
    answers = (answer.choices, answer.data, answer.results, answer.output)
    if not has_null_choices and any(raw and not is_null(raw) for raw in answers):
        return None
    code = _scalar(_error(answer.error).code)
    status = int(code) if isinstance(code, int) or (code.isascii() and code.isdecimal() and len(code) == 3) else 0
    return status if 400 <= status < 600 else int(HTTPStatus.INTERNAL_SERVER_ERROR)


def _error(raw: bytes | msgspec.Raw) -> _Error:
    try:
        return _decode_error(raw)
    except msgspec.DecodeError:
        return _Error()


def _scalar(raw: msgspec.Raw) -> str | int:
    try:
        return _decode_text(raw) if raw else ""
    except msgspec.DecodeError:
        return ""


def error_of(status: int, body: AnswerBody | None) -> tuple[str, str]:
    """Return the code and the message of an error response; neither is ever empty.

    Understands OpenAI's envelope, the bare object that older engines send, ``{"error": "…"}`` and ``{"detail": "…"}``.
    A ``code`` that only repeats the HTTP status, or that is a sentence, is replaced by the ``type``, and if that is no
    better, by ``http_<status>``. A message about a prompt that is too long gets OpenAI's code for this error.
    """
    members = raw_object(body.data) if body else None
    error = (members or {}).get("error")
    if error is not None and not is_null(error):
        found = _Error(message=error) if isinstance(_scalar(error), str) and _scalar(error) else _error(error)
    else:
        found = _error(body.data) if body else _Error()
    words = (_scalar(raw) for raw in (found.code, found.type))
    code = next((word for word in words if isinstance(word, str) and is_code(word) and not word.isdecimal()), "")
    message = _scalar(found.message) or _scalar(found.detail)
    if status < 500 and isinstance(message, str) and _TOO_LONG.search(message[:10_000]):
        code = "context_length_exceeded"
    return code or f"http_{status}", str(message or f"The inference server answered {status_text(status)}.")


def is_refusal(status: int, message: str) -> bool:
    """Return whether the message is a final refusal, although the status is a server error."""
    return status == HTTPStatus.INTERNAL_SERVER_ERROR and bool(_UNSUPPORTED.search(message[:1000]))


def status_text(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def wrapped(body: bytes) -> bytes:
    """Return a JSON error object whose message is the beginning of an error response that is not a JSON object."""
    message = body[:4096].decode("utf-8", "replace").strip()
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return escaped(msgspec.json.encode({"error": error}))
