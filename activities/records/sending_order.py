"""The sending order of a batch: the places of its requests in the input, in the order in which they are sent.

Only batches that are not sent in input order have one: their requests are sorted by prefix, or those of several
upstreams are mixed in the input. A shard is a range of entries, and a worker reads each request from its place. The
input itself is not sorted: that would copy all its bytes again, and would need the same slow random reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_ENTRY: Final = struct.Struct("<3Q")
ENTRY_BYTES: Final = _ENTRY.size


class LinePlace(NamedTuple):
    """Consecutive lines of an input: one or more requests, with the blank lines between them."""

    offset: int
    """Start in bytes, from the start of the input."""
    length: int
    """Length in bytes, including the blank lines that follow."""
    line: int
    """Number of the first line."""


def pack_places(places: Iterable[LinePlace], count: int) -> bytes:
    data = bytearray(count * ENTRY_BYTES)
    for number, place in enumerate(places):
        _ENTRY.pack_into(data, number * ENTRY_BYTES, *place)
    return bytes(data)


def unpack_places(data: bytes) -> list[LinePlace]:
    return [LinePlace(*entry) for entry in _ENTRY.iter_unpack(data)]


def joined(places: Iterable[LinePlace]) -> Iterator[LinePlace]:
    """Yield the places, with adjacent ones joined so that they can be read at once."""
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
