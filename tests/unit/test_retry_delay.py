"""How long a shard waits before its next attempt."""

from __future__ import annotations

import pytest

from activities.upstreams.retry_delay import ALONE_SECONDS, MAX_BACKOFF, retry_delay

SPREAD = 1.1  # the longest random addition


@pytest.mark.parametrize("max_attempts", [2, 3, 5, 8])
def test_a_request_that_fails_alone_is_tried_for_longer_than_an_engine_restarts(max_attempts: int) -> None:
    waits = [retry_delay(failures, 0.0, max_attempts) for failures in range(1, max_attempts)]
    assert sum(waits) >= ALONE_SECONDS
    assert waits[0] <= max(1.0, ALONE_SECONDS / (2 ** (max_attempts - 1) - 1)) * SPREAD


def test_a_passing_failure_of_one_request_costs_seconds() -> None:
    assert retry_delay(1, 0.0, alone_of=5) <= 4.0 * SPREAD


def test_the_wait_grows_to_a_bound_and_covers_the_pause() -> None:
    waits = [retry_delay(failures, 0.0) for failures in (1, 2, 3)]
    assert waits == sorted(waits)
    assert retry_delay(50, 0.0) <= MAX_BACKOFF * SPREAD
    assert 40.0 <= retry_delay(1, 40.0) <= 40.0 * SPREAD
