"""In flight finds its own level, in front of simulated engines and on a simulated clock."""

from __future__ import annotations

import statistics

import pytest

from activities.upstreams.engine_load import EngineLoad
from activities.upstreams.level import CACHE_FULL, FLOOR, START, InFlightLevel
from benchmarks.knee import EngineKind, Run, run


def settled(ran: Run) -> list[float]:
    """The limits of the second half."""
    return [limit for at, limit in ran.limits if at > ran.seconds / 2]


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize(("slots", "seconds"), [(1, 0.05), (16, 0.4), (100, 2.0)])
def test_it_settles_just_above_the_knee(slots: int, seconds: float, reports: bool) -> None:
    ran = run(EngineKind("", slots, seconds, reports=reports), None, 120)
    assert ran.share(60, 120) > 0.95
    assert ran.share(0, 120) > 0.85
    level = statistics.mean(settled(ran))
    assert level < 1.2 * slots + FLOOR if reports else level < 3 * slots + 2 * START
    assert ran.lost == 0


def test_several_workers_share_an_engine_that_reports_its_queue_without_adding_up() -> None:
    ran = run(EngineKind("", 32, 0.5, reports=True), None, 60, workers=3)
    assert ran.share(30, 60) > 0.95
    assert statistics.mean(settled(ran)) < 1.2 * 32
    assert max(settled(ran)) < 1.5 * 32


@pytest.mark.parametrize("reports", [False, True])
def test_an_engine_that_refuses_beyond_a_bound_is_kept_busy_and_seldom_asked_for_more(reports: bool) -> None:
    ran = run(EngineKind("", 16, 0.4, refuses_beyond=16, reports=reports), None, 120)
    assert ran.share(20, 120) > 0.95
    assert ran.refused < 0.02 * ran.answered
    assert ran.lost == 0


def test_an_engine_too_slow_for_its_timeout_is_sent_no_more_than_it_can_answer() -> None:
    ran = run(EngineKind("", 1, 1.3, timeout=8.0), None, 300)
    assert max(settled(ran)) <= 4
    assert ran.share(100, 300) > 0.85
    assert ran.lost == 0


# The engine's queue


class ReportingEngine:
    def __init__(self, ceiling: int = 1024, timeout: float = float("inf")) -> None:
        self.now = 100.0
        self.level = InFlightLevel(ceiling, lambda: self.now, timeout)

    def report(self, running: float, waiting: float, in_flight: int | None = None, **more: float) -> float:
        """The engine reports its load, of which ours is all or ``in_flight``. What the level is then."""
        self.now += 1
        self.level.observe_load(
            EngineLoad(running, waiting, **more), int(running + waiting) if in_flight is None else in_flight
        )
        return self.level.value


def test_it_grows_while_nothing_waits_up_to_its_ceiling() -> None:
    engine = ReportingEngine(ceiling=120)
    assert [engine.report(running, 0) for running in (16, 48, 120)] == [48, 120, 120]


def test_a_tenth_of_what_runs_may_wait() -> None:
    engine = ReportingEngine()
    for running in (16, 48, 144):
        engine.report(running, 0)
    assert engine.report(128, 500) == 128 + 12.8
    assert engine.report(128, 13) == pytest.approx(140.8)
    assert engine.report(128, 6) == engine.level.value
    assert engine.report(1, 60) == FLOOR


def test_it_does_not_grow_where_there_is_nothing_more_to_send() -> None:
    engine = ReportingEngine()
    assert engine.report(3, 0) == START


def test_it_takes_its_own_share_of_a_queue_back() -> None:
    engine = ReportingEngine()
    for running in (16, 48):
        engine.report(running, 0)
    assert engine.report(100, 40, in_flight=70) == 70 - 30 * 0.5


def test_preemptions_lower_it_and_a_full_cache_does_not_let_it_grow() -> None:
    engine = ReportingEngine()
    engine.report(START, 0, preemptions=5.0)
    assert engine.report(48, 0, preemptions=5.0, cache_used=CACHE_FULL) == 48
    assert engine.report(48, 0, preemptions=5.0) > 48
    assert engine.report(50, 2, preemptions=7.0) == 45
    assert engine.report(45, 0, preemptions=7.0) == 45
    engine.now += 60
    assert engine.report(45, 0, preemptions=7.0) > 45


def test_a_level_between_two_numbers_still_grows() -> None:
    engine = ReportingEngine()
    engine.level.cut(2.9)  # two may be in flight, which is less than four fifths of it
    engine.now += 60
    assert engine.report(2, 0) > 2.9


def test_an_engine_that_counts_other_requests_than_ours_is_not_believed() -> None:
    engine = ReportingEngine()
    assert engine.report(0, 0, in_flight=START) == START
    assert engine.report(2, 0, in_flight=START) == START


def test_it_does_not_grow_into_the_timeout() -> None:
    engine = ReportingEngine(timeout=10)
    engine.level.answered(engine.now - 4, 1, START)
    assert engine.report(START, 0) == START


def test_a_cut_is_taken_over() -> None:
    engine = ReportingEngine()
    engine.level.cut(3)
    assert engine.level.value == 3


# A process that is slower than its engine


def levels_of_a_slow_process(answers: int, *, reports_late: bool = True) -> list[float]:
    """The level with each answer of an engine of 0.1 s and without bound, to a process that handles 3,000 a second and
    gets no more than 600 requests from Temporal at a time: beyond 300 in flight, responses wait in the process.
    """
    now, levels = 100.0, list[float]()
    level = InFlightLevel(1024, lambda: now)
    for _ in range(answers):
        in_flight = min(int(level.value), 600)
        seconds = max(0.1, in_flight / 3000)
        now += seconds / in_flight
        late = (seconds - 0.1) / 4 if reports_late else 0.0
        level.answered(now - seconds, 1.0, in_flight, late)
        levels.append(level.value)
    return levels


def test_a_level_that_the_process_is_too_slow_to_fill_falls_to_what_the_process_can_do() -> None:
    assert levels_of_a_slow_process(60_000, reports_late=False)[-1] == 1024  # never filled, so never judged
    settled = levels_of_a_slow_process(60_000)[20_000:]
    assert 270 < statistics.mean(settled) < 400
