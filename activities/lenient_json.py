r"""JSON that msgspec refuses and the standard library takes: half of a surrogate pair, escaped.

JSON's grammar allows ``"\ud83d"``, and JavaScript writes it for an emoji that was cut in two. One such character in
a prompt is no reason to fail a batch, and one in an answer no reason to pay for it again.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

import msgspec

MAX_ITEMS: Final = 100_000
"""Members or items that are made objects of at a time. A line of 16 MiB may hold eight million."""
_MAX_LENIENT_BYTES: Final = 4 << 20
_COMMA: Final = ord(",")
_VALUES: Final = (b",", b":", b"[", b"{")
# A string, an array or object of plain values, or a mark of structure.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|\[[^][{}"]*+\]|[][{},]', re.DOTALL)

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def loads_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in UTF-8 that ``data`` holds, or ``None``; also where it would take some 50 MB of memory."""
    if len(data) > _MAX_LENIENT_BYTES or sum(map(data.count, _VALUES)) > MAX_ITEMS:
        return None
    try:
        value = json.loads(data.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType] - json is untyped


def raw_members(members: dict[str, Any], shape: type[msgspec.Struct]) -> dict[str, msgspec.Raw]:
    """The members that ``shape`` has, each as JSON again.

    Raises:
        ValueError: one holds a number that no float is large enough for.
    """
    return {name: _raw(members[name]) for name in shape.__struct_fields__ if name in members}


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value, allow_nan=False).encode())


def raw_object(data: bytes | msgspec.Raw | None) -> dict[str, msgspec.Raw] | None:
    """The members of a JSON object as the bytes that they came as; ``None`` if it is none, or has too many."""
    if data is None or has_more_members(data, MAX_ITEMS):
        return None
    try:
        return _decode_members(data)
    except (msgspec.DecodeError, RecursionError):
        members = loads_object(bytes(data))
    try:
        return {name: _raw(value) for name, value in members.items()} if members is not None else None
    except ValueError:
        return None


def raw_items(data: bytes | msgspec.Raw | None) -> list[msgspec.Raw] | None:
    """The same of an array."""
    if data is None or _has_more_items(data, MAX_ITEMS):
        return None
    try:
        return _decode_items(data)
    except (msgspec.DecodeError, RecursionError):
        items: Any = (loads_object(b'{"items":%b}' % bytes(data)) or {}).get("items")
    try:
        return [_raw(item) for item in items] if isinstance(items, list) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    except ValueError:
        return None


def has_more_members(data: bytes | msgspec.Raw, most: int) -> bool:
    """Whether an object has more than ``most`` members."""
    data = bytes(data)
    return data.count(b":") > most and count_items(data, most) > most


def _has_more_items(data: bytes | msgspec.Raw, most: int) -> bool:
    data = bytes(data)
    return data.count(b",") >= most and count_items(data, most) > most


def count_items(data: bytes, most: int) -> int:
    """Items of an array or object that has some, without making objects of them; counting ends above ``most``."""
    depth, items = 1, 1
    for found in _TOKEN.finditer(data, len(data) - len(data.lstrip()) + 1):
        token = data[found.start()]
        if token in b"[{":
            depth += found.end() - found.start() == 1  # else it has ended too
        elif token in b"]}":
            depth -= 1
        elif token == _COMMA and depth == 1:
            items += 1
            if items > most:
                break
    return items


def raw_bytes(members: dict[str, msgspec.Raw]) -> bytes:
    """A JSON object of such members."""
    try:
        return msgspec.json.encode(members)
    except UnicodeEncodeError:  # half of a surrogate pair in a name
        return b"{%b}" % b",".join(json.dumps(name).encode() + b":" + value for name, value in members.items())


def is_null(raw: msgspec.Raw | None) -> bool:
    """Whether a member is absent or null."""
    return raw is None or bytes(memoryview(raw)[:1]) == b"n"


def printable(text: str) -> str:
    """``text`` without halves of surrogate pairs, which no encoder takes."""
    return text.encode("utf-8", "replace").decode()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
