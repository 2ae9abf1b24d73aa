"""Splits the items of one array in a JSON object out of bytes as they arrive.

A body with 100,000 requests is one JSON value, and no available decoder reads a value in pieces. So this module finds
the end of each item and leaves the item to a decoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_INSIDE: Final = re.compile(rb'(?:[^][{}"]++|%b)*+' % _STRING, re.DOTALL)
"""Matches up to the next bracket, or up to a string that does not end in this chunk."""
_BETWEEN: Final = re.compile(rb'(?:[^][{},"]++|%b)*+' % _STRING, re.DOTALL)
"""Matches like ``_INSIDE``, but also stops at a comma."""
_STRING_END: Final = re.compile(_STRING[1:], re.DOTALL)
_MEMBERS, _ITEMS = 1, 2  # nesting depths of the object's members and of the array's items
_MAX_REST: Final = 1 << 20
_TAIL: Final = 200
"""Number of bytes before the array in which its name is searched."""


class MalformedItemsError(ValueError):
    """The bytes are not a JSON object with the expected array."""


class TooLongError(MalformedItemsError):
    """An item, or the data around the items, is longer than allowed."""


class JsonItems:
    """Holds one item at a time. :attr:`rest` is the object around the items, with an empty array in their place.

    Args: ``name`` is the member that holds the array; ``maximum`` is the maximum size of an item in bytes.
    """

    def __init__(self, name: str, maximum: int) -> None:
        self._opening = re.compile(rb'[{,]\s*+"%b"\s*+:\s*+\[\Z' % name.encode())
        self._maximum = maximum
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._in_items = False
        self._item = bytearray()
        self._count = 0
        self.arrays = 0
        """Number of times that the array has begun so far."""
        self.rest = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the items that end in a chunk. Consume all of them before feeding the next chunk.

        Raises:
            MalformedItemsError: an item is missing, or (:class:`TooLongError`) is too long.
        """
        start = at = 0
        while at < len(chunk):
            if self._in_string:
                at = self._end_of_string(chunk, at)
                continue
            run = (_BETWEEN if self._in_items and self._depth == _ITEMS else _INSIDE).match(chunk, at)
            at = run.end() if run else at
            mark = chunk[at : at + 1]
            at += 1
            if mark == b'"':
                self._in_string = True
            elif mark in (b"[", b"{"):
                self._depth += 1
                if mark == b"[" and self._depth == _ITEMS and not self._in_items:
                    self._hold(chunk[start:at])
                    start = at
                    self._open()
            elif mark in (b"]", b"}"):
                self._depth -= 1
                if self._in_items and self._depth == _MEMBERS:
                    self._hold(chunk[start : at - 1])
                    start = at - 1
                    yield from self._ended(is_last=True)
                    self._in_items = False
            elif mark == b",":
                self._hold(chunk[start : at - 1])
                start = at
                yield from self._ended(is_last=False)
        self._hold(chunk[start:])

    def end(self) -> None:
        """Check the end of the object, after the last chunk.

        Raises:
            MalformedItemsError: the object has not ended.
        """
        if self._depth or self._in_string:
            raise MalformedItemsError("it ends early")

    def _end_of_string(self, chunk: bytes, at: int) -> int:
        at += self._is_escaped
        self._is_escaped = False
        if match := _STRING_END.match(chunk, at):
            self._in_string = False
            return match.end()
        left = chunk[at:]
        self._is_escaped = (len(left) - len(left.rstrip(b"\\"))) % 2 == 1
        return len(chunk)

    def _open(self) -> None:
        if self._opening.search(self.rest[-_TAIL:]):
            self._in_items = True
            self._count = 0
            self.arrays += 1

    def _hold(self, data: bytes) -> None:
        held, maximum = (self._item, self._maximum) if self._in_items else (self.rest, _MAX_REST)
        held += data
        if len(held) > maximum:
            raise TooLongError(f"a part of it is longer than {maximum} bytes")

    def _ended(self, *, is_last: bool) -> Iterator[bytes]:
        item = bytes(self._item).strip()
        self._item.clear()
        if item:
            self._count += 1
            yield item
        elif self._count or not is_last:
            raise MalformedItemsError("an item of the array is missing")
