"""Keys of what is committed of a shard. Each carries the cut of the input and the attempt that wrote it."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from activities.records.keys import batch_prefix


class ShardRef(NamedTuple):
    """Names a shard of a batch: in a cut of its input, by its place in that cut."""

    tenant: str
    batch_id: str
    cut: str
    number: int
    """From 0."""


def answers_prefixes(tenant: str, batch_id: str) -> tuple[str, str]:
    """Below them, in parts and in finished objects, is what is committed of a batch and not in its result files yet."""
    prefix = batch_prefix(tenant, batch_id)
    return f"{prefix}parts/", f"{prefix}results/"


def parts_prefix(shard: ShardRef) -> str:
    parts, _ = answers_prefixes(shard.tenant, shard.batch_id)
    return f"{parts}{shard.cut}/{shard.number:06d}/"


def part_key(shard: ShardRef, attempt: str, number: int) -> str:
    return f"{parts_prefix(shard)}{attempt}-{number:06d}"


def results_of_cut_prefix(tenant: str, batch_id: str, cut: str) -> str:
    """Below it is ``<shard>/<attempt>`` for each finished object."""
    _, results = answers_prefixes(tenant, batch_id)
    return f"{results}{cut}/"


def results_prefix(shard: ShardRef) -> str:
    return f"{results_of_cut_prefix(shard.tenant, shard.batch_id, shard.cut)}{shard.number:06d}/"


def result_key(shard: ShardRef, attempt: str) -> str:
    return f"{results_prefix(shard)}{attempt}"


def attempt_of(result_key: str) -> str:
    """The attempt that wrote a result object."""
    return result_key.rsplit("/", 1)[1]


def attempt_name(number: int) -> str:
    """A name that no other attempt has.

    Temporal's number alone is not enough: a shard that is scheduled anew (its batch was paused, its workflow reset)
    counts from one again, perhaps while an attempt of before still runs somewhere.
    """
    return f"{number:06d}-{secrets.token_hex(4)}"
