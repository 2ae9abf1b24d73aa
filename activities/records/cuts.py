"""A cut: the division of a batch's input into shards, identified by its digest.

A cut is made when the input is validated. If the workflow is reset, the input is validated again, perhaps with other
routes, and may be cut differently. So everything that is committed is stored under the digest of its cut.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from workflows.types import Shard


class Cut(NamedTuple):
    input: str
    """Digest of the input's bytes."""
    lines: str
    """Digest of the line numbers of all requests (:class:`LineDigest`)."""
    shards: list[Shard]
    upstreams: list[str]
    """Names of the upstreams. :attr:`Shard.upstream` is an index into this list."""
    order: str = ""
    """Digest of the order in which the requests are sent (:mod:`activities.records.sending_order`); empty if it is that
    of the input."""

    @property
    def total(self) -> int:
        """The number of requests in the batch."""
        return sum(shard.requests for shard in self.shards)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.dump()).hexdigest()[:32]

    def dump(self) -> bytes:
        return json.dumps(self._asdict(), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def load(cls, data: bytes) -> Cut:
        content = json.loads(data)
        return cls(**content | {"shards": [Shard(*shard) for shard in content["shards"]]})


class LineDigest:
    """Computes a digest of line numbers in order, in constant memory."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, line: int) -> None:
        self._hash.update(line.to_bytes(8, "little"))

    @property
    def value(self) -> str:
        return self._hash.hexdigest()[:32]
