"""How fast a batch gets on: from what is known of it, which is never of this moment."""

from __future__ import annotations

import pytest

from api.gateway.pace import Paces
from api.gateway.pending import Pending
from workflows.events import History, PastWait
from workflows.types import BatchStatus, Counts
from workflows.waits import WaitKind

NOW = 1_800_000_000.0


def shard(number: int, completed: int, started: float, done: float, heard: float, in_flight: int = 0) -> Pending:
    """Args: times count back from now, in seconds."""
    return Pending(
        number, completed, 0, in_flight, 64, None, None, NOW - heard, started_at=NOW - started, done_at=NOW - done
    )


def status(done: int, since: float, at: float | None = None, kept: int = 0, total: int = 1000) -> BatchStatus:
    """Args: ``since`` and ``at`` count back from now."""
    return BatchStatus(
        counts=Counts(total=total, completed=done),
        rate_since=NOW - since,
        rate_done=kept,
        rate_at=None if at is None else NOW - at,
    )


def pace(status: BatchStatus, *pending: Pending, left: int = 100) -> tuple[float, float]:
    found = Paces().of("b", status, pending, left, NOW)
    assert found
    return found.per_second, found.seconds_left


def test_nothing_is_told_before_something_is_done() -> None:
    assert Paces().of("b", status(0, 5), [], 10, NOW) is None
    assert Paces().of("b", status(7, 5, kept=7), [shard(0, 0, 5, 5, 1)], 10, NOW) is None
    assert Paces().of("b", BatchStatus(counts=Counts(total=5)), [], 5, NOW) is None


def test_between_two_waves_the_rate_stays_and_the_time_left_goes_down() -> None:
    # Eight requests of 4 s each at a time; the second wave came 3 s ago.
    in_flight = [Pending(None, 0, 0, 1, None, None, None) for _ in range(8)]
    assert pace(status(16, 11, 3), *in_flight, left=32) == (2.0, 13.0)


def test_where_nothing_comes_for_too_long_the_rate_falls() -> None:
    in_flight = [Pending(None, 0, 0, 1, None, None, None) for _ in range(8)]
    rate, left = pace(status(16, 38, 30), *in_flight, left=32)
    assert rate == pytest.approx(16 / (8 + 24))
    assert left > 50


def test_a_request_that_takes_far_longer_than_others_is_expected_of_the_last_ones_too() -> None:
    in_flight = [Pending(None, 0, 0, 1, None, None, None, oldest_at=NOW - age) for age in (1, 2, 3, 26)]
    assert pace(status(40, 20, 0), *in_flight, left=20) == (2.0, 10.0 + 26 - 1.5 * 4 / 2)


def test_what_running_shards_have_not_told_yet_is_added() -> None:
    # Each does ten a second; the second was heard of 2 s before the first.
    shards = [shard(1, 100, 10, 0, 0), shard(2, 80, 10, 2, 2)]
    assert pace(status(0, 10), *shards, left=400) == (20.0, 20.0)


def test_a_retry_is_not_as_fast_as_what_it_takes_over() -> None:
    assert pace(status(550, 10, 0, kept=500), left=100) == (5.0, 20.0)


def test_time_that_the_batch_waited_does_not_count() -> None:
    wait = PastWait(kind=WaitKind.UPSTREAM, subject="gpu", reason="is away", began=int(NOW) - 90, ended=int(NOW) - 10)
    waited = status(100, 100, 0).model_copy(update={"history": History(waits=[wait])})
    assert pace(waited, left=100) == (5.0, 20.0)


def test_the_newer_half_counts_where_it_is_remembered() -> None:
    paces = Paces()
    for ago, done in ((900, 100), (10, 200)):
        paces.of("b", status(done, 1000, ago), [], 1000, NOW - ago)
    found = paces.of("b", status(400, 1000, 0), [], 200, NOW)
    assert found
    assert (found.per_second, found.seconds_left) == (20.0, 10.0)


def test_what_was_done_before_a_pause_tells_nothing() -> None:
    paces = Paces()
    paces.of("b", status(200, 1000, 900), [], 1000, NOW - 900)
    found = paces.of("b", status(500, 10, 0, kept=400), [], 200, NOW)
    assert found
    assert found.per_second == 10


def test_what_is_remembered_is_bounded() -> None:
    paces = Paces()
    found = None
    for second in range(1000):
        found = paces.of("b", status(10 * second, 1000, 1000 - second), [], 1000, NOW - 1000 + second)
    assert found
    assert found.per_second == pytest.approx(10, rel=0.05)
