r"""JSON that is kept as bytes. Values that must change are changed once, where they are first read.

JSON's grammar allows an escaped lone surrogate (``"\ud83d"``), and JavaScript writes one for an emoji that was cut in
two, but no encoder accepts it. :func:`repaired` replaces it with U+FFFD, so that no other code has to handle it.
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
"""Maximum number of members or items that become Python objects at a time: a line of 16 MiB may have eight million."""
MAX_DEPTH: Final = 500
"""Maximum nesting of arrays and objects in a request line: the decoder recurses, and the stack is finite."""

_COMMA: Final = ord(",")
# A string, an array of plain values, or a structural character.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|\[[^][{}"]*+\]|[][{},]', re.DOTALL)
_HALF: Final = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F](?<!\\u[dD][89abAB]..\\u[dD].)..)", re.DOTALL
)
_BACKSLASH, _NO_BACKSLASH = rb"\\", b"\0\0"
_BRACKETS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: 1 and -1
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))
_WINDOW: Final = 1 << 18
_BEYOND: Final = re.compile(rb"\\U(.{8})")

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def repaired(data: bytes) -> bytes:
    r"""Return JSON with ``\ufffd`` in place of each escaped lone surrogate. The length does not change."""
    if rb"\u" not in data or b"\0" in data:  # JSON contains no NUL
        return data
    # Mask escaped backslashes first: a ``u`` after one of them is plain text.
    return _HALF.sub(rb"\\ufffd", data.replace(_BACKSLASH, _NO_BACKSLASH)).replace(_NO_BACKSLASH, _BACKSLASH)


def decode_repaired(decode: Callable[[bytes], T], data: bytes) -> T:
    """Decode JSON; if the decoder rejects it, repair it and decode it again.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        msgspec.DecodeError: ``decode`` rejects it, also after the repair.
        RecursionError: its arrays and objects are nested too deeply.
    """
    if not data.isascii():
        data.decode()  # the decoder accepts any bytes in strings that it skips
    try:
        return decode(data)
    except msgspec.DecodeError:
        fixed = repaired(data)
        if fixed == data:
            raise
        return decode(fixed)


def escaped(data: bytes) -> bytes:
    r"""Return JSON in UTF-8 as ASCII, with ``\uXXXX`` for other characters and all else byte for byte.

    Many readers also split lines at U+2028, U+2029 and U+0085, and would see more lines than there are.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    if data.isascii():
        return data
    text = data.decode()
    # Python's escapes \xXX and \UXXXXXXXX are converted to JSON's \uXXXX. JSON itself contains neither, except after an
    # escaped backslash, so these are masked first.
    masked = text.replace("\\\\", "\0\0") if "\\\\" in text and "\0" not in text else text
    data = masked.encode("ascii", "backslashreplace").replace(rb"\x", rb"\u00")
    if rb"\U" in data:
        data = _BEYOND.sub(_pair, data)
    return data if masked is text else data.replace(_NO_BACKSLASH, _BACKSLASH)


def _pair(found: re.Match[bytes]) -> bytes:
    code = int(found[1], 16) - 0x10000
    return rb"\u%04x\u%04x" % (0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF))


def raw_object(data: bytes | msgspec.Raw | None) -> dict[str, msgspec.Raw] | None:
    """Return the members of a JSON object as their original bytes, or ``None`` if it is no object or has too many."""
    if data is None or has_more_members(data, MAX_ITEMS):
        return None
    try:
        return _decode_members(data)
    except (msgspec.DecodeError, RecursionError):
        return None


def raw_items(data: bytes | msgspec.Raw | None) -> list[msgspec.Raw] | None:
    """Return the items of a JSON array as their original bytes, or ``None`` if it is no array or has too many."""
    if data is None or _has_more_items(data, MAX_ITEMS):
        return None
    try:
        return _decode_items(data)
    except (msgspec.DecodeError, RecursionError):
        return None


def has_more_members(data: bytes | msgspec.Raw, maximum: int) -> bool:
    """Return whether an object has more than ``maximum`` members."""
    data = bytes(data)
    return data.count(b":") > maximum and count_items(data, maximum) > maximum


def _has_more_items(data: bytes | msgspec.Raw, maximum: int) -> bool:
    data = bytes(data)
    return data.count(b",") >= maximum and count_items(data, maximum) > maximum


def count_items(data: bytes, maximum: int) -> int:
    """Count the items of a non-empty array or object without decoding them. Counting stops above ``maximum``."""
    depth, items = 1, 1
    for found in _TOKEN.finditer(data, len(data) - len(data.lstrip()) + 1):
        token = data[found.start()]
        if token in b"[{":
            depth += found.end() - found.start() == 1  # a longer token is a whole array
        elif token in b"]}":
            depth -= 1
        elif token == _COMMA and depth == 1:
            items += 1
            if items > maximum:
                break
    return items


def is_deeper(data: bytes, maximum: int) -> bool:
    """Return whether arrays and objects in a JSON text are nested more than ``maximum`` levels deep."""
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
    """Return a JSON object with these members."""
    return msgspec.json.encode(members)


def is_null(raw: msgspec.Raw | None) -> bool:
    """Return whether a member is absent or null."""
    return raw is None or bytes(memoryview(raw)[:1]) == b"n"
