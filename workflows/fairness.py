"""The fairness keys and weights by which Temporal chooses the next shard, and the number of shards a batch queues."""

from __future__ import annotations

import hashlib
from typing import Final

from workflows.types import Shard

LANES: Final = (1, 7, 50, 5_000)
"""The maximum number of requests of a batch in each lane; the last lane, which follows these, has no maximum.

A tenant has one fairness key for each lane, so its small batches overtake its own large ones, and it has few keys
however many batches it has. Temporal counts exactly for a hundred keys only. Beyond that, keys collide: when each batch
had its own key, a tenant with hundreds of batches made the batches of other tenants wait as long as its own.
"""

KEY_BYTES: Final = 64
"""Maximum length of a fairness key. Temporal refuses longer ones."""

FIRST_SHARDS: Final = 8
FIRST_REQUESTS: Final = 4_000
MAX_FIRST_SHARDS: Final = 128
"""A batch starts with enough shards queued for ``FIRST_REQUESTS`` requests, within ``FIRST_SHARDS`` and this maximum.
With 1,024 requests in flight, half may belong to shards that only wait for their slowest request."""
MAX_SHARDS: Final = 256
"""Maximum number of shards that a batch has queued or running at once."""


def fairness_key(tenant: str, requests: int) -> str:
    """Return the fairness key of a batch with this number of requests."""
    lane = sum(requests > maximum for maximum in LANES)
    key = f"{tenant}/{lane}"
    return key if len(key.encode()) <= KEY_BYTES else f"{hashlib.sha256(tenant.encode()).hexdigest()[:40]}/{lane}"


def tenant_key(tenant: str) -> str:
    """Return the fairness key for activities that send no requests: validation, writing files and closing a batch."""
    return fairness_key(tenant, 0)


def fairness_weight(shard: Shard, share: float = 1.0) -> float:
    """Return the weight of a shard's task: inversely proportional to its requests, times the tenant's ``share``.

    Temporal divides its turns between keys by tasks; the weight makes that a division by requests. With equal weights,
    each single request of a small batch waited for a hundred requests of a batch of 50,000.
    """
    return min(1000.0, max(0.001, 100.0 * share / shard.requests))


def first_window(shards: list[Shard]) -> int:
    """Return the number of shards that a batch queues at first. Each shard that ends admits its successor and one more.

    When twenty batches arrived together and each scheduled hundreds of shards in one workflow task, the tasks timed
    out. Workers with room for more shards get them after one round.
    """
    average = sum(shard.requests for shard in shards) / max(1, len(shards))
    return min(MAX_FIRST_SHARDS, max(FIRST_SHARDS, round(FIRST_REQUESTS / max(1.0, average))))
