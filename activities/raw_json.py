r"""JSON kept as bytes. Values that must change are changed once, where they are first read.

JSON's grammar allows half of a surrogate pair, escaped (``"\ud83d"``), and JavaScript writes it for an emoji that was
cut in two; but no encoder takes it. :func:`repaired` puts U+FFFD in its place, so that nobody else meets one.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

MAX_ITEMS: Final = 100_000
"""Members or items that are made objects of at a time. A line of 16 MiB may hold eight million."""
MAX_DEPTH: Final = 500
"""Levels of arrays and objects in a request line. The decoder calls itself for each, and a stack has an end."""

_COMMA: Final = ord(",")
# A string, an array or object of plain values, or a mark of structure.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|\[[^][{}"]*+\]|[][{},]', re.DOTALL)
_HALF: Final = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F](?<!\\u[dD][89abAB]..\\u[dD].)..)", re.DOTALL
)
_BACKSLASH, _NO_BACKSLASH = rb"\\", b"\0\0"
_BRACKETS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one more, one fewer
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))
_WINDOW: Final = 1 << 18
_BEYOND: Final = re.compile(rb"\\U(.{8})")

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def repaired(data: bytes) -> bytes:
    r"""JSON with ``\ufffd`` for each escaped half of a surrogate pair: as long as before."""
    if rb"\u" not in data or b"\0" in data:  # a NUL is in no JSON
        return data
    # Escaped backslashes out of the way first: what follows them is text.
    return _HALF.sub(rb"\\ufffd", data.replace(_BACKSLASH, _NO_BACKSLASH)).replace(_NO_BACKSLASH, _BACKSLASH)


def decode_repaired(decode: Callable[[bytes], T], data: bytes) -> T:
    """What a decoder makes of JSON, which is repaired where the decoder does not take it as it is.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        msgspec.DecodeError: of ``decode``, also after the repair.
        RecursionError: it has too many arrays and objects in each other.
    """
    if not data.isascii():
        data.decode()  # the decoder takes any bytes in strings that it skips
    try:
        return decode(data)
    except msgspec.DecodeError:
        fixed = repaired(data)
        if fixed == data:
            raise
        return decode(fixed)


def escaped(data: bytes) -> bytes:
    r"""JSON in UTF-8 as ASCII: ``\uXXXX`` for what is not. All else stays byte for byte.

    Readers of lines cut at U+2028, U+2029 and U+0085 too, and then see more lines than there are.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    if data.isascii():
        return data
    text = data.decode()
    # Python's own escapes, and then JSON's for two of their three forms. JSON has neither, where no escaped backslash
    # stands before the letter.
    masked = text.replace("\\\\", "\0\0") if "\\\\" in text and "\0" not in text else text
    data = masked.encode("ascii", "backslashreplace").replace(rb"\x", rb"\u00")
    if rb"\U" in data:
        data = _BEYOND.sub(_pair, data)
    return data if masked is text else data.replace(_NO_BACKSLASH, _BACKSLASH)


def _pair(found: re.Match[bytes]) -> bytes:
    code = int(found[1], 16) - 0x10000
    return rb"\u%04x\u%04x" % (0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF))


def raw_object(data: bytes | msgspec.Raw | None) -> dict[str, msgspec.Raw] | None:
    """The members of a JSON object as the bytes that they came as; ``None`` if it is none, or has too many."""
    if data is None or has_more_members(data, MAX_ITEMS):
        return None
    try:
        return _decode_members(data)
    except (msgspec.DecodeError, RecursionError):
        return None


def raw_items(data: bytes | msgspec.Raw | None) -> list[msgspec.Raw] | None:
    """The same of an array."""
    if data is None or _has_more_items(data, MAX_ITEMS):
        return None
    try:
        return _decode_items(data)
    except (msgspec.DecodeError, RecursionError):
        return None


def has_more_members(data: bytes | msgspec.Raw, maximum: int) -> bool:
    """Whether an object has more than ``maximum`` members."""
    data = bytes(data)
    return data.count(b":") > maximum and count_items(data, maximum) > maximum


def _has_more_items(data: bytes | msgspec.Raw, maximum: int) -> bool:
    data = bytes(data)
    return data.count(b",") >= maximum and count_items(data, maximum) > maximum


def count_items(data: bytes, maximum: int) -> int:
    """Items of an array or object that has some, without making objects of them; counting ends above ``maximum``."""
    depth, items = 1, 1
    for found in _TOKEN.finditer(data, len(data) - len(data.lstrip()) + 1):
        token = data[found.start()]
        if token in b"[{":
            depth += found.end() - found.start() == 1  # else it has ended too
        elif token in b"]}":
            depth -= 1
        elif token == _COMMA and depth == 1:
            items += 1
            if items > maximum:
                break
    return items


def is_deeper(data: bytes, maximum: int) -> bool:
    """Whether a JSON text has arrays and objects in each other, more than ``maximum`` of them."""
    if data.count(b"[") + data.count(b"{") <= maximum:
        return False
    if b"\\" in data:
        data = data.replace(_BACKSLASH, _NO_BACKSLASH).replace(b'\\"', _NO_BACKSLASH)
    depth, in_string = 0, 0
    for start in range(0, len(data), _WINDOW):
        pieces = data[start : start + _WINDOW].split(b'"')
        brackets = b"".join(pieces[in_string::2]).translate(_BRACKETS, _NO_BRACKETS)
        in_string ^= (len(pieces) - 1) & 1
        depths = array("h", accumulate(array("b", brackets), initial=depth))
        if max(depths) > maximum:
            return True
        depth = depths[-1]
    return False


def raw_bytes(members: dict[str, msgspec.Raw]) -> bytes:
    """A JSON object of such members."""
    return msgspec.json.encode(members)


def is_null(raw: msgspec.Raw | None) -> bool:
    """Whether a member is absent or null."""
    return raw is None or bytes(memoryview(raw)[:1]) == b"n"
