"""Which requests of a batch begin alike, so that they can be sent one after the other.

Engines keep what they have computed of the beginnings of prompts. That pays while it is in their cache: of many
prefixes in random order each is computed again and again, of the same in turn each is computed once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final, Protocol
from zlib import crc32

import msgspec

BLOCK_BYTES: Final = 512
"""Texts are compared in blocks, of some hundred tokens: to compute fewer again costs an engine little."""
MAX_BYTES: Final = 64 * BLOCK_BYTES
"""Of a request that are looked at. Beyond, requests count as alike."""
MAX_NODES: Final = 1 << 17
"""Of the tree, about 15 MB. Beginnings that first come after so many are not told apart."""
WORTH: Final = 0.1
"""Share of the requests that must profit from another order than that of the input for it to be left."""


class Beginning(Protocol):
    """The members of a body that a prompt is made of, in the order in which templates put them into it."""

    tools: msgspec.Raw
    instructions: msgspec.Raw
    system: msgspec.Raw
    messages: msgspec.Raw
    prompt: msgspec.Raw
    input: msgspec.Raw


def beginning(model: str, body: Beginning) -> bytes:
    """What two requests have in common at the start is likely to be a common prefix of their prompts."""
    parts = (body.tools, body.instructions, body.system, body.messages, body.prompt, body.input)
    return b"".join((model.encode(), *parts))[:MAX_BYTES]


class PrefixTree:
    """The beginnings of requests. A path of blocks leads to each node, and each request adds one node at most: so
    memory is some bytes for each request, and what many have in common is known as deep as it goes.
    """

    def __init__(self) -> None:
        self._children: dict[int, int] = {}
        self._parents = array("I", [0])
        self._nodes = array("I")  # where each request ends
        self._path: list[int] = []  # of the last one
        self._profiting = 0

    def add(self, text: bytes) -> None:
        node, path = 0, list[int]()
        new: int | None = None
        find = self._children.get
        for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
            # Blocks of one digest count as equal. Requests that only seem to begin alike are sent all the same.
            step = node << 32 | crc32(text[start : start + BLOCK_BYTES])
            if (child := find(step)) is None:
                new = step
                break
            node = child
            path.append(node)
        self._profiting += path != self._path[: len(path)]
        if new is not None and len(self._parents) < MAX_NODES:
            self._parents.append(node)
            node = self._children[new] = len(self._parents) - 1
            path.append(node)
        self._path = path
        self._nodes.append(node)

    @property
    def pays(self) -> bool:
        """Whether enough requests begin as an earlier one, and not as the one right before them."""
        return self._profiting >= WORTH * len(self._nodes)

    def order(self) -> Iterable[int]:
        """The requests, counted from 0, in an order in which those that begin alike follow on each other. Where no
        other begins as they do, they stay in the order in which they were added.
        """
        sizes = array("I", bytes(4 * len(self._parents)))
        for node in self._nodes:
            sizes[node] += 1
        # Of a node, its own requests come first, then those of its children, which have higher numbers than it has.
        starts, following = array("I", bytes(4 * len(sizes))), array("I", sizes)
        for node in range(len(sizes) - 1, 0, -1):
            sizes[self._parents[node]] += sizes[node]
        for node in range(1, len(sizes)):
            parent = self._parents[node]
            starts[node] = following[parent]
            following[parent] += sizes[node]
            following[node] += starts[node]
        order = array("I", bytes(4 * len(self._nodes)))
        for request, node in enumerate(self._nodes):
            order[starts[node]] = request
            starts[node] += 1
        return order
