r"""JSON that msgspec refuses and the standard library takes: half of a surrogate pair, escaped.

JSON's grammar allows ``"\ud83d"``, and JavaScript writes it for an emoji that was cut in two. One such character in
a prompt is no reason to fail a batch, and one in an answer no reason to pay for it again.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import msgspec


def loads_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in UTF-8 that ``data`` holds, or ``None``."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType] - json is untyped


def raw_members(members: dict[str, Any], shape: type[msgspec.Struct]) -> dict[str, msgspec.Raw]:
    """The members that ``shape`` has, each as JSON again."""
    names = [name for name in shape.__struct_fields__ if name in members]
    return {name: msgspec.Raw(json.dumps(members[name]).encode()) for name in names}


def printable(text: str) -> str:
    """``text`` without halves of surrogate pairs, which no encoder takes."""
    return text.encode("utf-8", "replace").decode()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
