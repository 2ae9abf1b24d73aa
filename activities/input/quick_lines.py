"""Request lines that are beyond doubt, read by one call of the decoder.

Most lines of most inputs are. What any other line is, and what is wrong with it, is for
:mod:`activities.input.request_rules` to say, which looks closer and takes five times as long.
"""

from __future__ import annotations

from typing import Final

import msgspec

from activities.raw_json import MAX_DEPTH, decode_repaired

MAX_BYTES: Final = 20_000
"""Of a line that cannot hold too many members for a look at them to be needed."""


class QuickBody(msgspec.Struct, gc=False):
    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")


class QuickLine(msgspec.Struct, gc=False):
    custom_id: str
    method: str
    url: str
    body: QuickBody


_decode = msgspec.json.Decoder(QuickLine).decode


def quick_line(data: bytes) -> QuickLine | None:
    """A request line as it stands; ``None`` unless it is plain that it is one."""
    if len(data) > MAX_BYTES:
        return None
    if len(data) > MAX_DEPTH and data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        return None
    try:
        return decode_repaired(_decode, data)
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None
