"""Reads the lines of an input as a stream, and parses request lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from activities.raw_json import decode_repaired, repaired

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
HEAD_BYTES: Final = 4096
"""Number of bytes that are kept of a line that is too long to hold in memory, to find its ``custom_id``."""

_BLANK_LINES: Final = re.compile(rb"(?:[ \t\r\v\f]*+\n)++")
_SPACE: Final = ord(" ")
_CUSTOM_ID: Final = re.compile(
    rb'\s*\{\s*+(?:"(?:method|url)"\s*+:\s*+"[^"\\]*+"\s*+,\s*+)*+"custom_id"\s*+:\s*+("(?:[^"\\]|\\.)++")'
)


class Line(NamedTuple):
    number: int
    """Number of the physical line, from 1; blank lines count."""
    offset: int
    """Bytes from the start of the stream."""
    length: int
    """Bytes of the line, including its line break."""
    data: bytes | None
    """The line without surrounding white space and byte order mark; ``None`` if it is too long to hold in memory."""
    head: bytes = b""
    """The first bytes of a line that is too long."""


def read_lines(chunks: Iterable[bytes], max_bytes: int, *, first_line: int = 1) -> Iterator[Line]:
    """Split a stream into lines, holding one in memory at a time, if it has at most ``max_bytes``.

    Blank lines are counted but not returned. The last line needs no line break.
    """
    number, offset = first_line, 0
    held: list[bytes] = []
    length = 0
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if not length and chunk[start] <= _SPACE and (blank := _BLANK_LINES.match(chunk, start)):
                number += chunk.count(b"\n", start, blank.end())
                offset += blank.end() - start
                start = blank.end()
                continue
            if not length and number > 1 and end - start < max_bytes:  # the same as _line, but faster for most lines
                if data := chunk[start:end].strip():
                    yield Line(number, offset, end + 1 - start, data)
                number, offset, start = number + 1, offset + end + 1 - start, end + 1
                continue
            length += end + 1 - start
            held.append(chunk[start:end])
            if line := _line(number, offset, length, held, max_bytes):
                yield line
            number, offset, start = number + 1, offset + length, end + 1
            held, length = [], 0
        length += len(chunk) - start
        if start < len(chunk):
            held.append(chunk[start:])
        if length > max_bytes:
            held = [b"".join(held)[:HEAD_BYTES]]
    if length and (line := _line(number, offset, length, held, max_bytes)):
        yield line


def _line(number: int, offset: int, length: int, pieces: list[bytes], max_bytes: int) -> Line | None:
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if number == 1:
        data = data.removeprefix(BYTE_ORDER_MARK)
    if length > max_bytes:
        return Line(number, offset, length, None, data[:HEAD_BYTES])
    data = data.strip()
    return Line(number, offset, length, data) if data else None


class RequestLine(msgspec.Struct):
    """The raw values of a request line. Absent members are empty; unknown members are ignored."""

    custom_id: msgspec.Raw = msgspec.Raw(b"")
    method: msgspec.Raw = msgspec.Raw(b"")
    url: msgspec.Raw = msgspec.Raw(b"")
    body: msgspec.Raw = msgspec.Raw(b"")


class BodyMembers(msgspec.Struct, gc=False):
    """The raw members of a body that validation looks at, except ``model``. Absent ones are empty."""

    stream: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")


_decode_line = msgspec.json.Decoder(RequestLine).decode


def parse_line(data: bytes) -> RequestLine:
    """Parse a request line without parsing its values. Lone surrogates become U+FFFD.

    Raises:
        UnicodeDecodeError: the line is not UTF-8.
        ValueError: it is not a JSON object.
        RecursionError: its arrays and objects are nested too deeply.
    """
    return decode_repaired(_decode_line, data)


def custom_id_of(line: Line) -> bytes | None:
    """Return the ``custom_id``, as JSON, of a line that is too long to hold, if it is at the beginning of the line."""
    found = _CUSTOM_ID.match(line.head)
    if not found:
        return None
    custom_id = repaired(found[1])
    try:
        msgspec.json.decode(custom_id)
    except ValueError:  # the base class of DecodeError, and of the error for invalid UTF-8
        return None
    return custom_id


def request_of(line: Line) -> RequestLine:
    """Return the request of a valid line. A line that is too long to hold has only a ``custom_id``, perhaps null."""
    if line.data is None:
        return RequestLine(custom_id=msgspec.Raw(custom_id_of(line) or b"null"))
    return parse_line(line.data)


TOO_LONG: Final = "line_too_large"


def too_long(line: Line, max_bytes: int) -> str:
    """Return the message of the error line for a line that is too long to be sent."""
    return (
        f"The request was not sent: its line has {line.length} bytes, and EVERBATCH_MAX_LINE_BYTES allows "
        f"{max_bytes}. Split the request, or have the operator raise the limit."
    )
