"""Orders the requests of a batch by their beginnings, so that requests with a common prefix are sent together.

Engines cache what they have computed for the prefixes of prompts, as long as there is room. If requests with many
prefixes are sent in random order, each prefix is computed again and again; in this order, each is computed once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

from activities.input.jsonl import BodyMembers

BLOCK_BYTES: Final = 512
"""Texts are compared in blocks of a hundred tokens or more: recomputing fewer costs an engine little."""
MAX_BYTES: Final = 64 * BLOCK_BYTES
"""Maximum bytes of a request that are compared."""
MAX_NODES: Final = 1 << 17
"""Maximum number of nodes of the tree, about 15 MB. Beginnings that appear later are not distinguished."""
WORTH: Final = 0.1
"""Minimum share of the requests that must benefit for the input order to be given up."""


def beginning(model: str, body: BodyMembers) -> bytes:
    """Return a text that begins as the prompt does: a common prefix of two is likely one of their prompts."""
    text = model.encode()
    # in the order in which chat templates insert them
    for part in (body.tools, body.instructions, body.system, body.messages, body.prompt, body.input):
        if part:
            text += memoryview(part)[:MAX_BYTES]
    return text[:MAX_BYTES]


class PrefixTree:
    """A tree of the beginnings of requests, with a block of text per edge. Each request adds at most one node, so
    memory is small and constant per request, and prefixes that many requests share are known to any depth.
    """

    def __init__(self) -> None:
        self._children: dict[int, int] = {}
        self._parents = array("I", [0])
        self._nodes = array("I")  # where each request ends
        self._path: list[int] = []  # of the last request
        self._profiting = 0

    def add(self, text: bytes) -> None:
        if len(text) < BLOCK_BYTES:
            self._path = []
            self._nodes.append(0)
            return
        node = 0
        path: list[int] = []
        new: int | None = None
        find = self._children.get
        for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
            # Blocks with the same hash count as equal. A collision only affects the order.
            step = hash(text[start : start + BLOCK_BYTES]) + node
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
        """Whether enough requests share a prefix with an earlier request other than the one right before them."""
        return self._profiting >= WORTH * len(self._nodes)

    def order(self) -> Iterable[int]:
        """Return the requests, counted from 0, in an order in which those with a common beginning are adjacent.
        Otherwise they stay in the order in which they were added.
        """
        sizes = array("I", bytes(4 * len(self._parents)))
        for node in self._nodes:
            sizes[node] += 1
        # A node's own requests come first, then those of its children, whose numbers are higher than that of the node.
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
