"""Responses of an upstream and their meaning, without transport or waiting."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final

from activities.upstreams.answer_bodies import error_of, is_refusal, read_body, status_text, wrapped
from activities.upstreams.answer_budget import Held
from workflows.contract import MAX_RETRY_DELAY
from workflows.types import Usage

_RETRIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, 408, 409, 425})
_OVERLOADED: Final = frozenset({429, 503})


class Verdict(Enum):
    SUCCESS = "success"
    FINAL = "final"
    """The engine refuses the request: trying again would not help."""
    RETRY = "retry"
    """Something failed. The answers to other requests decide whether the failure counts against this one."""
    TIMED_OUT = "timed_out"
    """As ``RETRY``, after our own timeout: the request may only have waited behind others."""
    OVERLOADED = "overloaded"
    """As ``RETRY``, and the engine asks for fewer requests."""
    UNREACHABLE = "unreachable"
    """There was no connection: the request waits, and the failure does not count."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of sending one request."""

    verdict: Verdict
    status: int = 0
    """HTTP status; zero without an HTTP response, or if it is too large, or a 2xx that is not a JSON object."""
    body: bytes = b""
    """A JSON object on one line; empty if ``status`` is zero."""
    request_id: str = ""
    usage: Usage | None = None
    code: str = ""
    """Code of the error line: ``request_timeout``, ``connection_error``, ``answer_too_large`` or the engine's own."""
    message: str = ""
    """Message of the error line. It may quote the engine, so it must not enter Temporal."""
    reason: str = ""
    """Text for the Temporal UI and ``progress``. It never quotes the engine."""
    retry_after: float | None = None
    """Seconds for which the engine asks to wait."""
    held: Held | None = None
    """Share of a large answer in the memory for answers; to be released once the answer is stored."""
    is_costly: bool = False
    """Whether the engine did its work without a usable result, so that the request should not be repeated often."""


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds to wait according to ``retry-after-ms`` or ``Retry-After`` (seconds or a date).

    The result is at most ``MAX_RETRY_DELAY``, and ``None`` if neither header is present, valid and positive.

    Args:
        headers: the response's headers, with names in lower case or in a case-insensitive mapping.
        now: Unix time in seconds.
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
    """Classify an HTTP response by itself, without regard to other requests. docs/failures.md has the whole table."""
    request_id = headers.get("x-request-id", "")
    if not request_id.isascii():
        request_id = ""
    read = read_body(body)
    reason = status_text(status)
    if 200 <= status < 300:
        if read is None:
            message = "The inference server's answer was not a JSON object."
            reason = f"HTTP {status} with a body that is not JSON"
            return Answer(Verdict.RETRY, code="server_error", message=message, reason=reason, is_costly=True)
        if read.error_status is None:
            return Answer(Verdict.SUCCESS, status, read.data, request_id, read.usage)
        reason = f"HTTP {status} with an error of {read.error_status} in it"
        status = read.error_status
    code, message = error_of(status, read)
    if status in _OVERLOADED:
        verdict = Verdict.OVERLOADED
    elif read and is_refusal(status, message):
        verdict = Verdict.FINAL
    elif status in _RETRIED or status >= 500 or status < 400 or read is None:
        # A wrong key, a redirect (a wrong address), or a page: engines answer in JSON, so this is from a proxy.
        verdict = Verdict.RETRY
    else:
        verdict = Verdict.FINAL
    if read is None and body.strip():
        reason += ", a page that is not the engine's"
    data = read.data if read else wrapped(body)
    wait = retry_after(headers, now) if verdict is not Verdict.FINAL else None
    return Answer(verdict, status, data, request_id, None, code, message, reason, wait)
