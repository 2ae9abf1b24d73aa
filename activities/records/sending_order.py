"""Where the requests of a batch are in its input, one behind the other as they are sent.

Only a batch has this that is not sent in input order: its requests are sorted by their prefixes, or those of several
upstreams lie across each other. A shard of it is a run of entries, and a worker reads each request from its place. The
input itself is not sorted: that would move all its bytes once more, and random reads of a network are as slow there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_ENTRY: Final = struct.Struct("<3Q")
ENTRY_BYTES: Final = _ENTRY.size


class LinePlace(NamedTuple):
    """Lines that follow on each other in an input: one request, or several and the blank lines between."""

    offset: int
    """Bytes from the start of the input."""
    length: int
    """Bytes, with the blank lines that follow."""
    line: int
    """Number of the first one."""


def pack_places(places: Iterable[LinePlace], count: int) -> bytes:
    data = bytearray(count * ENTRY_BYTES)
    for number, place in enumerate(places):
        _ENTRY.pack_into(data, number * ENTRY_BYTES, *place)
    return bytes(data)


def unpack_places(data: bytes) -> list[LinePlace]:
    return [LinePlace(*entry) for entry in _ENTRY.iter_unpack(data)]


def joined(places: Iterable[LinePlace]) -> Iterator[LinePlace]:
    """The same places, those that touch each other as one: so they can be read at once."""
    last: LinePlace | None = None
    for place in places:
        if last and last.offset + last.length == place.offset:
            last = last._replace(length=last.length + place.length)
            continue
        if last:
            yield last
        last = place
    if last:
        yield last
