"""How the input of a batch is cut into shards, and the name of such a cut.

A cut is made when the input is checked. A batch whose workflow was reset is checked again, perhaps with other routes,
and may be cut otherwise: so everything that is committed lies under the digest of the cut that it answers.
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
    """Names; :attr:`Shard.upstream` is an index into this list."""
    order: str = ""
    """Digest of the order in which the requests are sent (:mod:`activities.records.sending_order`); empty where it is
    that of the input."""

    @property
    def total(self) -> int:
        """All requests of the batch."""
        return sum(shard.requests for shard in self.shards)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.dump()).hexdigest()[:32]

    def dump(self) -> bytes:
        return json.dumps(self._asdict(), sort_keys=True, separators=(",", ":")).encode()


def load_cut(data: bytes) -> Cut:
    content = json.loads(data)
    return Cut(**content | {"shards": [Shard(*shard) for shard in content["shards"]]})


class LineDigest:
    """Digest of line numbers in their order, in bounded memory."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, line: int) -> None:
        self._hash.update(line.to_bytes(8, "little"))

    @property
    def value(self) -> str:
        return self._hash.hexdigest()[:32]
