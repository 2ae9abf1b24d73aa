"""What a shard weighs while there is a backlog: turns between batches are by requests, and by their tenants' shares."""

from __future__ import annotations

import pytest

from workflows.batch import fairness_weight
from workflows.types import Shard


@pytest.mark.parametrize(
    ("requests", "share", "weight"),
    [
        (1, 1.0, 100.0),
        (100, 1.0, 1.0),
        (2000, 1.0, 0.05),
        (1, 2.0, 200.0),
        (100, 0.5, 0.5),
        (100, 1 / 50, 0.02),
        (1, 1e9, 1000.0),  # Temporal's bounds
        (2000, 1e-9, 0.001),
    ],
)
def test_the_weight_of_a_shard(requests: int, share: float, weight: float) -> None:
    assert fairness_weight(Shard(0, 10, 1, requests), share) == pytest.approx(weight)
