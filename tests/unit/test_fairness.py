"""What Temporal takes turns by while there is a backlog, and how much of a batch is queued with it."""

from __future__ import annotations

import pytest

from workflows.fairness import (
    KEY_BYTES,
    LANES,
    MAX_FIRST_SHARDS,
    fairness_key,
    fairness_weight,
    first_window,
)
from workflows.types import Shard


@pytest.mark.parametrize(
    ("requests", "share", "weight"),
    [
        (1, 1.0, 100.0),
        (100, 1.0, 1.0),
        (2000, 1.0, 0.05),
        (1, 2.0, 200.0),
        (100, 0.5, 0.5),
        (1, 1e9, 1000.0),  # Temporal's bounds
        (2000, 1e-9, 0.001),
    ],
)
def test_the_weight_of_a_shard(requests: int, share: float, weight: float) -> None:
    assert fairness_weight(Shard(0, 10, 1, requests), share) == pytest.approx(weight)


def test_a_tenant_has_a_key_for_each_size_of_batch_and_no_more() -> None:
    assert fairness_key("ads", 5) != fairness_key("search", 5)
    assert fairness_key("ads", 1) != fairness_key("ads", 10) != fairness_key("ads", 50_000)
    assert len({fairness_key("ads", requests) for requests in range(10_000)}) == len(LANES) + 1


def test_the_key_of_a_tenant_with_a_long_name_is_one_that_temporal_takes() -> None:
    long = "é" * 64
    assert len(fairness_key(long, 7).encode()) <= KEY_BYTES
    assert fairness_key(long, 7) != fairness_key(long[:-1], 7)


@pytest.mark.parametrize(
    ("shards", "requests", "window"), [(50, 1, 128), (157, 32, 125), (200, 250, 16), (500, 2000, 8)]
)
def test_how_many_shards_are_queued_at_first(shards: int, requests: int, window: int) -> None:
    assert first_window([Shard(0, 1, 1, requests)] * shards) == window <= MAX_FIRST_SHARDS
