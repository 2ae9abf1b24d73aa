"""Lines of the input: reading them as a stream, and the one shape that a request line has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from activities.lenient_json import loads_object, raw_members

MAX_LINE_BYTES: Final = 16 << 20
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Line(NamedTuple):
    number: int
    """Physical, from 1; blank lines count."""
    offset: int
    """Bytes from the start of what was read."""
    length: int
    """Bytes, with the line's end."""
    data: bytes | None
    """Without line end and byte order mark; empty for a blank line, ``None`` for one that is too long to hold."""


def read_lines(chunks: Iterable[bytes], *, first_line: int = 1, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Cut a stream into lines, holding one at a time; the last needs no line end."""
    number, offset = first_line, 0
    held: list[bytes] = []
    length = 0
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            length += end + 1 - start
            held.append(chunk[start:end])
            yield Line(number, offset, length, _line_data(held, number) if length <= max_bytes else None)
            number, offset, start = number + 1, offset + length, end + 1
            held, length = [], 0
        length += len(chunk) - start
        if length <= max_bytes:
            held.append(chunk[start:])
        else:
            held.clear()
    if length:
        yield Line(number, offset, length, _line_data(held, number) if length <= max_bytes else None)


def _line_data(pieces: list[bytes], number: int) -> bytes:
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if number == 1:
        data = data.removeprefix(BYTE_ORDER_MARK)
    return data.strip()


class RequestLine(msgspec.Struct):
    """A request line as its raw values. Absent members are empty; unknown ones are ignored (SPEC.md section 5)."""

    custom_id: msgspec.Raw = msgspec.Raw(b"")
    method: msgspec.Raw = msgspec.Raw(b"")
    url: msgspec.Raw = msgspec.Raw(b"")
    body: msgspec.Raw = msgspec.Raw(b"")


_decode_line = msgspec.json.Decoder(RequestLine).decode


def parse_line(data: bytes) -> RequestLine:
    """Parse a request line without looking into its values.

    Raises:
        ValueError: it is not a JSON object in UTF-8.
    """
    try:
        if not data.isascii():
            data.decode()  # the decoder takes any bytes in strings that it skips
        return _decode_line(data)
    except (msgspec.DecodeError, RecursionError) as error:
        members = loads_object(data)
        if members is None:
            raise ValueError("not a JSON object") from error
        return RequestLine(**raw_members(members, RequestLine))
