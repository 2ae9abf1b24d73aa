"""The keys of a shard's committed objects. Each contains the cut of the input and the attempt that wrote it."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from activities.records.keys import batch_prefix
from workflows.ids import BatchRef


class ShardRef(NamedTuple):
    """Identifies a shard of a batch, by a cut of the input and its index in that cut."""

    batch: BatchRef
    cut: str
    number: int
    """Index in the cut, from 0."""


def answers_prefixes(ref: BatchRef) -> tuple[str, str]:
    """Return the prefixes of the parts and shard objects of a batch, which exist until its result files are written."""
    prefix = batch_prefix(ref)
    return f"{prefix}parts/", f"{prefix}results/"


def parts_prefix(shard: ShardRef) -> str:
    parts, _ = answers_prefixes(shard.batch)
    return f"{parts}{shard.cut}/{shard.number:06d}/"


def part_key(shard: ShardRef, attempt: str, number: int) -> str:
    return f"{parts_prefix(shard)}{attempt}-{number:06d}"


def results_of_cut_prefix(ref: BatchRef, cut: str) -> str:
    """Return the prefix of the shard objects of a cut, which are named ``<shard>/<attempt>``."""
    _, results = answers_prefixes(ref)
    return f"{results}{cut}/"


def results_prefix(shard: ShardRef) -> str:
    return f"{results_of_cut_prefix(shard.batch, shard.cut)}{shard.number:06d}/"


def result_key(shard: ShardRef, attempt: str) -> str:
    return f"{results_prefix(shard)}{attempt}"


def attempt_of(result_key: str) -> str:
    """Return the attempt that wrote a shard object."""
    return result_key.rsplit("/", 1)[1]


def attempt_name(number: int) -> str:
    """Return a name that no other attempt has.

    Temporal's attempt number alone is not enough: if a shard is scheduled again (because its batch was paused or its
    workflow reset), attempts count from one again, perhaps while an earlier attempt is still running somewhere.
    """
    return f"{number:06d}-{secrets.token_hex(4)}"
