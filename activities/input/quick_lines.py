"""Parses request lines that are clearly valid with a single call of the decoder.

These are most lines of most inputs. All other lines are checked, with their errors, by
:mod:`activities.input.request_rules`, which takes five times as long.
"""

from __future__ import annotations

from typing import Final

import msgspec

from activities.input.jsonl import BodyMembers
from activities.raw_json import MAX_DEPTH, decode_repaired

MAX_BYTES: Final = 20_000
"""Maximum size of a line whose members need not be counted, because it cannot have too many."""


class QuickBody(BodyMembers, gc=False):
    model: str | msgspec.UnsetType = msgspec.UNSET


class QuickLine(msgspec.Struct, gc=False):
    custom_id: str
    method: str
    url: str
    body: QuickBody


_decode = msgspec.json.Decoder(QuickLine).decode


def quick_line(data: bytes) -> QuickLine | None:
    """Return the request in a line, or ``None`` if the line needs a closer check."""
    if len(data) > MAX_BYTES:
        return None
    if len(data) > MAX_DEPTH and data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        return None
    try:
        return decode_repaired(_decode, data)
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None
