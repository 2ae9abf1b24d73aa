"""What the lines of an error file say: codes and messages."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from workflows.error_summary import FIRST_LINES, MAX_CODES, ErrorCount, summed

NO_CODE: Final = "unknown"
MAX_CODE_LENGTH: Final = 100
MAX_MESSAGE_LENGTH: Final = 300


class _Coded(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None
    message: Any = None


class _Body(msgspec.Struct):
    error: _Coded | str | None = None


class _Response(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = msgspec.Raw(b"")


class _ErrorLine(msgspec.Struct):
    error: _Coded | None = None
    response: _Response | None = None


_decode: Final = msgspec.json.Decoder(_ErrorLine).decode
_decode_body: Final = msgspec.json.Decoder(_Body).decode


class LineError(NamedTuple):
    code: str
    message: str | None


def read_error(line: bytes) -> LineError:
    """The error of an error line; of a strict one, which leaves it out, that of the response, or its status."""
    try:
        decoded = _decode(line)
    except msgspec.DecodeError:
        return LineError(NO_CODE, None)
    code = decoded.error.code if decoded.error else None
    message = decoded.error.message if decoded.error else None
    if code is None and decoded.response:
        try:
            error = _decode_body(decoded.response.body).error
        except msgspec.DecodeError:
            error = None
        if isinstance(error, _Coded):
            code = error.type if error.code is None else error.code
            message = message or error.message
        code = f"http_{decoded.response.status_code}" if code is None else code
    text = " ".join(message.split())[:MAX_MESSAGE_LENGTH] if isinstance(message, str) else None
    return LineError(NO_CODE if code is None else str(code)[:MAX_CODE_LENGTH], text)


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
