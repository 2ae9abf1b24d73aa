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
    models: dict[str, int]
    """Where there are several upstreams: by the model that a request names, the index of its upstream …"""
    rest: int
    """… and the index for requests that name none."""

    @property
    def total(self) -> int:
        """All requests of the batch."""
        return sum(shard.requests for shard in self.shards)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.dump()).hexdigest()[:32]

    def upstream(self, model: str | None) -> int:
        """The index of the upstream that a request for this model is for. It was decided when the input was checked:
        what an engine lists may be different when a shard runs.
        """
        return self.models.get(model, self.rest) if model is not None else self.rest

    def dump(self) -> bytes:
        # Not by pydantic: half of a surrogate pair may stand in a model's name.
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
