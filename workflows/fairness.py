"""Fairness keys and weights, by which Temporal chooses the next shard, and how many shards a batch queues."""

from __future__ import annotations

import hashlib
from typing import Final

from workflows.types import Shard

LANES: Final = (1, 7, 50, 5_000)
"""Most requests of a batch in each lane but the last.

A tenant has one fairness key for each lane, so its small batches pass its own large ones, and however many batches it
has, it has few keys. Temporal counts exactly for a hundred keys only; beyond that keys collide, and a tenant with
hundreds of batches, each under a key of its own, made those of others wait for as long as its own.
"""

KEY_BYTES: Final = 64
"""Temporal refuses longer keys."""

FIRST_SHARDS: Final = 8
FIRST_REQUESTS: Final = 4_000
MAX_FIRST_SHARDS: Final = 128
"""A batch begins with so many shards queued: enough for these requests, within these bounds. With 1,024 in flight half
of them may belong to shards that only wait for their slowest."""
MAX_SHARDS: Final = 256


def fairness_key(tenant: str, requests: int) -> str:
    """Args: ``requests`` are those of the batch."""
    lane = sum(requests > maximum for maximum in LANES)
    key = f"{tenant}/{lane}"
    return key if len(key.encode()) <= KEY_BYTES else f"{hashlib.sha256(tenant.encode()).hexdigest()[:40]}/{lane}"


def tenant_key(tenant: str) -> str:
    """For work that is no request: validation and result files."""
    return fairness_key(tenant, 0)


def fairness_weight(shard: Shard, share: float = 1.0) -> float:
    """Temporal takes turns between keys by tasks; this makes it turns by requests, times the tenant's ``share``.

    Measured behind a batch of 50,000: with equal weights each single request of a small batch waited for a hundred of
    the large one.
    """
    return min(1000.0, max(0.001, 100.0 * share / shard.requests))


def first_window(shards: list[Shard]) -> int:
    """Shards that a batch queues at first; each one that ends lets in its successor and one more.

    A workflow task that scheduled hundreds of shards, for each of twenty batches that came together, ran out of its
    time. Workers that can take in more have it after one round.
    """
    average = sum(shard.requests for shard in shards) / max(1, len(shards))
    return min(MAX_FIRST_SHARDS, max(FIRST_SHARDS, round(FIRST_REQUESTS / max(1.0, average))))
