"""A level that leaves room for an engine's other clients, in front of simulated engines and on a simulated clock."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace

import pytest

from activities.upstreams.engine_load import EngineLoad
from activities.upstreams.headroom import ALONE_SECONDS, FIRST, MIN_ANSWERS, SHARED_SECONDS, HeadroomLevel
from activities.upstreams.lanes import Flight
from activities.upstreams.limiter import Limiter
from activities.upstreams.waiting_requests import WaitingRequests
from benchmarks.knee import EngineKind, Run, Sharing, SimulatedEngine, run

SHARING = Sharing(headroom=0.2)


def settled(ran: Run) -> list[float]:
    """The limits of the second half."""
    return [limit for at, limit in ran.limits if at > ran.seconds / 2]


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize(("slots", "seconds"), [(8, 0.4), (32, 1.0), (200, 2.0)])
def test_it_settles_below_the_knee_and_costs_no_more_than_that(slots: int, seconds: float, reports: bool) -> None:
    ran = run(EngineKind("", slots, seconds, reports=reports), None, 120, sharing=SHARING)
    assert max(settled(ran)) <= 0.85 * slots
    assert ran.share(60, 120) > 0.68
    assert ran.lost == 0


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("slots", [1, 2])
def test_an_engine_with_a_place_or_two_is_sent_one(slots: int, reports: bool) -> None:
    ran = run(EngineKind("", slots, 0.1, reports=reports), None, 120, sharing=SHARING)
    assert set(settled(ran)) == {1.0}


def test_whoever_else_comes_to_an_engine_that_reports_its_queue_finds_a_place() -> None:
    waits: list[float] = []

    async def ask(engine: SimulatedEngine) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(30)
        while True:
            sent = loop.time()
            await engine.serve(0.2, 0, lambda sent=sent: waits.append(loop.time() - sent))
            await asyncio.sleep(0.5)

    kind = EngineKind("", 16, 1.0, reports=True)
    run(kind, None, 120, sharing=SHARING, beside=ask)
    assert len(waits) > 50
    assert max(waits) < 0.01
    waits.clear()
    run(kind, None, 120, beside=ask)
    assert statistics.median(waits) > 0.02


def test_ours_make_room_for_many_others_and_come_back() -> None:
    async def ask(engine: SimulatedEngine) -> None:
        await asyncio.sleep(40)
        await asyncio.gather(*(engine.serve(40.0) for _ in range(20)))  # for 40 s

    ran = run(EngineKind("", 32, 1.0, reports=True), None, 120, sharing=SHARING, beside=ask)
    of_second = {round(at): limit for at, limit in ran.limits}
    assert of_second[40] == 25
    assert max(of_second[second] for second in range(50, 79)) <= 25.6 - 20
    assert of_second[86] == 25


def test_several_workers_share_an_engine_that_reports_its_queue() -> None:
    ran = run(EngineKind("", 32, 0.5, reports=True), None, 60, workers=3, sharing=SHARING)
    assert ran.share(30, 60) > 0.68
    assert statistics.mean(settled(ran)) <= 0.8 * 32


def test_a_fixed_number_is_where_it_begins_and_what_it_comes_back_to() -> None:
    engine = ReportingEngine(ceiling=51, finds_level=False)
    assert engine.level.value == 51
    assert engine.report(40, 20, in_flight=51) < 51
    for _ in range(2 * int(ALONE_SECONDS)):
        engine.report(engine.level.value)
    assert engine.level.value == 51


def test_a_volley_of_timeouts_lowers_it_once() -> None:
    clock = [0.0]
    limiter = Limiter(100, lambda: clock[0], finds_level=False, headroom=0.2)
    flights: list[Flight] = []
    shard = WaitingRequests("a", list(range(100)), lambda number, flight: flights.append(flight))
    limiter.add(shard, lambda: None)
    clock[0] = 60.0
    for flight in flights[:50]:
        flight.lane.timed_out(flight.sent)
    assert flights[0].lane.limit >= 0.8 * 100 // 3  # cut to a third, of which the headroom leaves four fifths


def test_a_capacity_that_was_one_for_a_while_is_not_taken_for_ever() -> None:
    engine = ReportingEngine()
    engine.report(1, 3)
    assert engine.report(1) == 1
    for _ in range(int(3 * ALONE_SECONDS)):
        engine.report(engine.level.value)
    assert engine.level.value > 10


def test_ours_come_back_at_once_where_answers_take_long() -> None:
    engine = ReportingEngine(timeout=600)
    engine.learn(100)
    level = engine.level.value
    for _ in range(50):
        engine.level.answered(engine.now - 10, 1, int(level))
    for _ in range(60):
        engine.report(100, in_flight=int(engine.level.value))
    assert engine.level.value == 1
    assert engine.report(1) >= level - 1


async def test_no_batch_exceeds_it() -> None:
    limiter = Limiter(100, lambda: 0.0, finds_level=True, headroom=0.2)
    started: list[str] = []

    def shard(name: str) -> WaitingRequests:
        def start(number: int, flight: Flight) -> None:
            started.append(name)

        return WaitingRequests(name, list(range(10)), start)

    for name in ("large", "small"):
        limiter.add(shard(name), lambda: None)
    assert started == ["large"] * FIRST


# What the engine says


class ReportingEngine:
    """An engine of which ours are all requests, or ``in_flight``."""

    def __init__(
        self, headroom: float = 0.2, ceiling: int = 1024, timeout: float = float("inf"), *, finds_level: bool = True
    ) -> None:
        self.now = 100.0
        self.level = HeadroomLevel(ceiling, lambda: self.now, timeout, headroom=headroom, finds_level=finds_level)

    def report(self, running: float, waiting: float = 0, in_flight: int | None = None, **more: float) -> float:
        self.now += 1
        ours = int(running + waiting) if in_flight is None else in_flight
        self.level.observe_load(EngineLoad(running, waiting, **more), ours)
        return self.level.value

    def grow(self, running: float) -> None:
        """Until more than that is in flight."""
        while self.level.value <= running:
            self.report(self.level.value)

    def learn(self, capacity: float) -> None:
        """What runs when requests wait, and that they are done."""
        self.grow(capacity)
        for _ in range(2):
            self.report(capacity, max(1.0, self.level.value - capacity))
        for _ in range(5):
            self.report(self.level.value)


def test_it_grows_by_a_quarter_until_requests_wait_and_stays_below_what_runs_then() -> None:
    engine = ReportingEngine()
    assert [engine.report(running) for running in (4, 5, 6, 7, 8, 10)] == [5, 6, 7, 8, 10, 12]
    engine.grow(20)
    assert engine.report(20, 4) <= 24 - 8
    assert [engine.report(16), engine.report(16)] == [16, 16]


def test_one_request_that_waits_may_be_on_its_way_and_two_times_in_a_row_it_is_not() -> None:
    engine = ReportingEngine()
    engine.grow(20)
    level = engine.level.value
    assert engine.report(level - 1, 1) == level
    assert engine.report(level - 1, 1) < level


def test_each_request_of_others_is_one_less_of_ours() -> None:
    engine = ReportingEngine()
    engine.learn(20)
    assert engine.level.value == 16
    assert engine.report(19, in_flight=16) == 13
    assert engine.report(16, in_flight=13) == 13
    assert engine.report(13, in_flight=13) == 16


def test_others_alone_are_left_all_but_one() -> None:
    engine = ReportingEngine()
    engine.report(4)
    for _ in range(10):
        engine.report(8, 20, in_flight=int(engine.level.value))
    assert engine.level.value == 1


def test_requests_that_waited_for_a_moment_only_do_not_make_the_engine_small() -> None:
    engine = ReportingEngine()
    engine.grow(32)
    level = engine.level.value
    engine.report(6, level - 6)  # prompts are being read
    assert engine.report(level) < level
    for _ in range(5):
        engine.report(engine.level.value)
    assert engine.level.value == int(0.8 * level)


def test_more_is_looked_for_after_a_while_alone_and_seldom_beside_others() -> None:
    engine = ReportingEngine()
    engine.learn(20)
    engine.now += ALONE_SECONDS
    engine.report(16, in_flight=15)  # somebody is there
    for _ in range(5):
        assert engine.report(engine.level.value) <= 16
    engine.now += ALONE_SECONDS
    for _ in range(5):
        engine.report(engine.level.value)
    assert engine.level.value > 16
    engine.learn(20)
    engine.now += SHARED_SECONDS
    for _ in range(10):
        engine.report(engine.level.value + 1, in_flight=int(engine.level.value))
    assert engine.level.value > 16


def test_preemptions_lower_it_and_a_full_cache_does_not_let_it_grow() -> None:
    engine = ReportingEngine()
    engine.report(4, preemptions=5.0)
    assert engine.report(5, preemptions=5.0, cache_used=0.99) == 5
    assert engine.report(5, preemptions=6.0) == 4


def test_a_fixed_number_gives_way_to_a_queue_and_is_not_exceeded() -> None:
    engine = ReportingEngine(ceiling=12, finds_level=False)
    assert engine.report(12) == 12
    assert engine.report(8, 4) < 12
    for _ in range(5):
        engine.report(engine.level.value)
    assert engine.level.value == 6


def test_an_engine_that_counts_other_requests_than_ours_is_not_believed() -> None:
    engine = ReportingEngine()
    assert engine.report(0, 0, in_flight=4) == FIRST


def test_what_the_upstream_refuses_is_its_capacity() -> None:
    engine = ReportingEngine()
    engine.grow(12)
    engine.level.cut(10)
    assert engine.level.value == 8
    engine.now += 60
    assert engine.report(8) == 8


# What latency says


class Silent:
    """An engine that reports nothing, always as busy as the level allows."""

    def __init__(self, *, finds_level: bool = False) -> None:
        self.now = 100.0
        self.level = HeadroomLevel(50, lambda: self.now, headroom=0.2, finds_level=finds_level)

    def answer(self, seconds: float, measurements: int = 1) -> float:
        """As many answers as a measurement has, or several, each after so long."""
        for _ in range(measurements * max(MIN_ANSWERS, int(self.level.value))):
            sent_at = self.now
            self.now += seconds
            self.level.answered(sent_at, 1.0, int(self.level.value))
        return self.level.value


def test_a_latency_that_rises_lowers_it_in_proportion_until_it_has_fallen_again() -> None:
    engine = Silent()
    assert engine.answer(1.0, 3) == 50
    assert engine.answer(1.2) == 50  # it varies
    assert engine.answer(2.6) == pytest.approx(25, abs=1)
    assert engine.answer(2.6) == pytest.approx(25, abs=1)
    assert engine.answer(1.0) == 50


def test_what_has_become_slower_for_good_is_usual_in_the_end() -> None:
    engine = Silent()
    engine.answer(1.0, 3)
    assert engine.answer(1.5, 1) < 50
    assert engine.answer(1.5, 200) == 50


def test_more_is_looked_for_after_many_measurements() -> None:
    kind = EngineKind("", 8, 0.05)
    ran = run(kind, None, 300, sharing=SHARING)
    assert ran.share(0, 300) > 0.68
    late = [limit for at, limit in ran.limits if at > 30]
    assert statistics.median(late) == 6
    assert max(late) > 6


def test_others_that_slow_it_down_are_noticed_without_a_word_of_the_engine() -> None:
    async def ask(engine: SimulatedEngine) -> None:
        await asyncio.sleep(60)
        while True:
            await asyncio.gather(*(engine.serve(1.0) for _ in range(64)))

    kind = EngineKind("", 32, 0.5)
    ran = run(kind, None, 90, sharing=SHARING, beside=ask)
    assert statistics.mean(limit for at, limit in ran.limits if at > 75) < 20
    alone = run(replace(kind), None, 90, sharing=SHARING)
    assert statistics.mean(settled(alone)) > 22


def test_a_refusal_keeps_it_below_what_the_upstream_takes() -> None:
    ran = run(EngineKind("", 16, 0.4, refuses_beyond=16), None, 120, sharing=SHARING)
    assert max(settled(ran)) <= 16
    assert ran.share(60, 120) > 0.6
    assert ran.refused < 0.02 * ran.answered
    assert ran.lost == 0
