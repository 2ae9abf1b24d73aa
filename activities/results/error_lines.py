"""Reads the codes and messages of the lines of an error file."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from activities.upstreams.answer_bodies import error_of, read_body
from workflows.error_summary import FIRST_LINES, MAX_CODES, ErrorCount, is_code, summed

NO_CODE: Final = "unknown"
MAX_MESSAGE_LENGTH: Final = 300


class _Coded(msgspec.Struct):
    code: str | int | None = None
    message: Any = None


class _Response(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = msgspec.Raw(b"")


class _ErrorLine(msgspec.Struct):
    error: _Coded | None = None
    response: _Response | None = None


_decode: Final = msgspec.json.Decoder(_ErrorLine).decode


class LineError(NamedTuple):
    code: str
    message: str | None


def read_error(line: bytes) -> LineError:
    """Return the error of an error line. In strict mode the line has none, so the error is that of its response.

    The code may enter Temporal, so anything that does not look like a code becomes ``NO_CODE``. The message must not.
    """
    try:
        decoded = _decode(line)
    except msgspec.DecodeError:
        return LineError(NO_CODE, None)
    code = decoded.error.code if decoded.error else None
    message = decoded.error.message if decoded.error else None
    if code is None and decoded.response:
        code, message = error_of(decoded.response.status_code, read_body(bytes(decoded.response.body)))
    text = " ".join(message.split())[:MAX_MESSAGE_LENGTH] if isinstance(message, str) else None
    return LineError(str(code) if is_code(str(code or "")) else NO_CODE, text)


class ErrorTally:
    """Counts errors by their codes."""

    def __init__(self, shard: int | None = None) -> None:
        self._shard = shard
        self._counts: dict[str, int] = {}
        self._lines: dict[str, list[int]] = {}

    def add(self, line: int, code: str) -> None:
        self._counts[code] = self._counts.get(code, 0) + 1
        lines = self._lines.setdefault(code, [])
        if len(lines) < FIRST_LINES or line < lines[-1]:
            self._lines[code] = sorted((*lines, line))[:FIRST_LINES]

    def summary(self, maximum: int = MAX_CODES) -> list[ErrorCount]:
        counts = (
            ErrorCount(code=code, count=count, first_lines=self._lines[code], shard=self._shard)
            for code, count in self._counts.items()
        )
        return summed(counts, maximum)
