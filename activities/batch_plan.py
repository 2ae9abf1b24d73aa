"""Which requests of a batch are for which of its upstreams."""

from __future__ import annotations

import json
from typing import NamedTuple

from workflows.types import Shard


class BatchPlan(NamedTuple):
    """Made once, when the input is checked: what an engine lists may be different when a shard runs."""

    shards: list[Shard]
    models: dict[str, int]
    """By the model that a request names: :attr:`Shard.upstream` of its shard …"""
    rest: int
    """… and that of requests that name none."""

    def upstream(self, model: str | None) -> int:
        return self.rest if model is None else self.models[model]

    def dump(self) -> bytes:
        # Not by pydantic: half of a surrogate pair may stand in a model's name.
        return json.dumps(self._asdict()).encode()


def load_plan(data: bytes) -> BatchPlan:
    content = json.loads(data)
    return BatchPlan([Shard(*shard) for shard in content["shards"]], content["models"], content["rest"])
