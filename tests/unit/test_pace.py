"""How fast a batch gets on: from what is known of it, which is never of this moment."""

from __future__ import annotations

import pytest

from api.gateway.pace import Paces
from api.gateway.pending import Pending
from workflows.events import History, PastWait
from workflows.types import BatchPhase, BatchStatus, Counts
from workflows.waits import Wait, WaitKind

NOW = 1_800_000_000.0


def in_flight(count: int) -> list[Pending]:
    return [Pending(None, 0, 0, 1, None, None, None) for _ in range(count)]


def status(
    done: int, since: float, at: float, left: int = 100, begun_with: int | None = 0, now: float = NOW
) -> BatchStatus:
    """Args: ``since`` and ``at`` count back from ``now``."""
    return BatchStatus(
        phase=BatchPhase.IN_PROGRESS,
        counts=Counts(total=done + left, completed=done),
        rate_since=now - since,
        rate_done=begun_with,
        rate_at=now - at,
    )


def pace(status: BatchStatus, *pending: Pending) -> tuple[float, float]:
    found = Paces().of("b", status, pending, NOW)
    assert found
    return found.per_second, found.seconds_left


def rate_after(*moments: tuple[float, int], begun_with: int | None = 0) -> float | None:
    """The rate once it was seen how many were done at each of these moments, in seconds from the begin on."""
    paces, found = Paces(), None
    for second, done in moments:
        now = NOW + second
        found = paces.of("b", status(done, second, 0, begun_with=begun_with, now=now), [], now)
    return found and found.per_second


def test_nothing_is_reported_before_something_is_done() -> None:
    assert Paces().of("b", status(0, 5, 5), [], NOW) is None
    assert Paces().of("b", status(7, 5, 5, begun_with=7), [], NOW) is None
    assert Paces().of("b", BatchStatus(counts=Counts(total=5)), [], NOW) is None


def test_between_two_waves_the_rate_stays_and_the_time_left_goes_down() -> None:
    # Eight requests of 4 s each at a time; the second wave came 3 s ago.
    assert pace(status(16, 11, 3, left=32), *in_flight(8)) == (2.0, 13.0)


def test_where_nothing_comes_for_too_long_the_rate_falls() -> None:
    rate, left = pace(status(16, 38, 30, left=32), *in_flight(8))
    assert rate == pytest.approx(16 / (8 + 24))
    assert left > 50


def test_a_request_that_takes_far_longer_than_others_is_expected_of_the_last_ones_too() -> None:
    ages = [Pending(None, 0, 0, 1, None, None, None, oldest_at=NOW - age) for age in (1, 2, 3, 26)]
    assert pace(status(40, 20, 0, left=20), *ages) == (2.0, 10.0 + 26 - 1.5 * 4 / 2)


def test_a_retry_is_not_as_fast_as_what_it_takes_over() -> None:
    assert pace(status(550, 10, 0, begun_with=500)) == (5.0, 20.0)


def test_a_wait_for_one_of_two_upstreams_makes_the_other_no_faster() -> None:
    wait = PastWait(kind=WaitKind.UPSTREAM, subject="gpu", reason="is away", began=int(NOW) - 99)
    waits = {"history": History(waits=[wait, wait.model_copy(update={"subject": "cpu", "ended": int(NOW)})])}
    assert pace(status(100, 100, 0).model_copy(update=waits)) == (1.0, 100.0)


def test_the_last_third_counts_where_it_is_remembered() -> None:
    assert rate_after((100, 1000), (200, 1100), (300, 1200)) == 1.0  # slower by now: of its time
    assert rate_after((100, 10), (110, 210), (120, 410)) == 20.0  # faster by now, perhaps after an outage: of what came


def test_some_fast_ones_in_a_row_of_a_small_batch_make_it_no_faster() -> None:
    assert rate_after((10, 10), (20, 20), (24, 30)) == 30 / 24


def test_how_long_the_last_ones_take_is_what_the_oldest_took_on_average() -> None:
    paces, found = Paces(), None
    for age in (30, 50):
        pending = [Pending(None, 0, 0, 1, None, None, None, oldest_at=NOW - age)]
        found = paces.of("b", status(40, 20, 0, left=20), pending, NOW)
    assert found
    assert found.seconds_left == 10 + 40 - 1.5 * 1 / 2


def test_what_the_whole_batch_waited_for_does_not_count() -> None:
    paces = Paces()

    def look(second: float, done: int, since: float, *pending: Pending) -> float | None:
        """Args: ``since`` is when the last one was done, in seconds from the begin on."""
        now = NOW + second
        found = paces.of("b", status(done, second, second - since, now=now), pending, now)
        return found and found.per_second

    wait = Wait(kind=WaitKind.UPSTREAM, subject="gpu", reason="is away")
    waits, probes = Pending(1, 0, 0, 0, None, wait, None), Pending(2, 0, 0, 1, 64, None, None)
    assert look(10, 100, 10) == 10.0
    assert look(300, 100, 10, waits) is None
    assert look(310, 100, 10, waits, probes) is None
    assert look(600, 100, 10, waits) is None
    assert look(620, 300, 620, *in_flight(8)) == 10.0


def test_what_comes_within_moments_of_each_other_shows_nothing() -> None:
    # A shard that begins to tell what it has done, a moment after another.
    assert rate_after((20, 100), (20.01, 400)) == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize("seen_first", [500, 900])
def test_after_a_pause_only_what_was_seen_to_come_counts(seen_first: int) -> None:
    assert rate_after((1, seen_first), begun_with=None) is None
    assert rate_after((1, seen_first), (11, seen_first + 50), begun_with=None) == 5.0


def test_what_was_seen_before_a_pause_shows_nothing() -> None:
    paces = Paces()
    for ago, done in ((900, 200), (800, 400)):
        paces.of("b", status(done, 1000 - ago, 0, now=NOW - ago), [], NOW - ago)
    assert paces.of("b", status(450, 10, 20, begun_with=None), [], NOW) is None
    found = paces.of("b", status(500, 20, 0, begun_with=None, now=NOW + 10), [], NOW + 10)
    assert found
    assert found.per_second == 50 / 20


@pytest.mark.parametrize(
    "change",
    [
        {"cancelling_at": int(NOW)},
        {"phase": BatchPhase.CANCELLING},
        {"phase": BatchPhase.FINALIZING},
        {"paused_at": int(NOW)},
    ],
)
def test_a_batch_that_is_ending_or_paused_has_no_pace(change: dict[str, object]) -> None:
    assert Paces().of("b", status(100, 100, 0).model_copy(update=change), in_flight(8), NOW) is None


def test_what_is_remembered_is_bounded() -> None:
    moments = [(second, 10 * second) for second in range(1, 1000)]
    assert rate_after(*moments) == pytest.approx(10, rel=0.05)
