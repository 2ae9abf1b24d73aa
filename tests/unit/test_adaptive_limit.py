from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from activities.upstreams.adaptive_limit import FIRST_PAUSE, MAX_PAUSE, AdaptiveLimit


@dataclass
class Engine:
    """An engine that admits so many requests at once and refuses the rest, in front of a limit of 64."""

    admits: int
    now: float = 1000.0
    served: list[int] = field(default_factory=list[int])
    refused: int = 0
    paused: float = 0.0

    def __post_init__(self) -> None:
        self.limit = AdaptiveLimit(64, lambda: self.now)

    def round(self) -> int:
        """One round trip: fill up to the limit; refusals come at once, answers a second later. How many were served."""
        sent_at, sending = self.now, int(self.limit.limit)
        self.now += 0.01
        served = min(sending, self.admits)
        self.paused = 0.0
        for in_flight in range(sending - 1, served - 1, -1):
            self.paused = max(self.paused, self.limit.overloaded(sent_at, in_flight, has_retry_after=False))
        self.now += 1.0
        for _ in range(served):
            self.limit.answered(sent_at)
        self.served.append(served)
        self.refused += sending - served
        return served


@pytest.mark.parametrize("admits", [1, 3, 16, 32, 50, 63])
def test_it_keeps_an_engine_that_admits_so_many_at_once_busy(admits: int) -> None:
    engine = Engine(admits)
    for _ in range(200):
        engine.round()
    assert sum(engine.served[20:]) / (180 * admits) > 0.9
    assert engine.refused < 2 * 200  # a probe now and then, however small the engine


def test_an_engine_without_a_limit_is_never_cut() -> None:
    engine = Engine(1000)
    assert {engine.round() for _ in range(10)} == {64}


def test_an_engine_that_takes_more_again_is_sent_more_again() -> None:
    engine = Engine(8)
    for _ in range(20):
        engine.round()
    engine.admits = 1000
    for _ in range(150):
        engine.round()
    assert engine.limit.limit == 64


@pytest.mark.parametrize("refusals", [1, 5])
def test_after_an_outage_the_way_back_is_fast(refusals: int) -> None:
    engine = Engine(64)
    engine.round()
    engine.admits = 0
    for _ in range(refusals):
        engine.round()
        engine.now += engine.paused
    engine.admits = 64
    rounds = 0
    while engine.round() < 60:
        rounds += 1
    assert rounds <= 6  # it doubles: 1, 2, 4, … 64


def test_a_refused_volley_halves_it_once() -> None:
    engine = Engine(0)
    assert engine.round() == 0
    assert engine.limit.limit == 32


def test_while_nothing_gets_through_one_probe_goes_out_at_growing_intervals_with_a_bound() -> None:
    engine = Engine(0)
    engine.round()
    pauses: list[float] = []
    for _ in range(6):
        engine.round()
        pauses.append(engine.paused)
    assert pauses == [FIRST_PAUSE, 1.0, 2.0, MAX_PAUSE, MAX_PAUSE, MAX_PAUSE]
    assert engine.limit.limit == 1


def test_a_retry_after_teaches_nothing_about_the_limit() -> None:
    engine = Engine(64)
    for _ in range(3):
        sent_at = engine.now
        engine.now += 1
        assert engine.limit.overloaded(sent_at, 0, has_retry_after=True) == 0
        engine.now += 20
    while engine.round() < 60:
        pass
    assert len(engine.served) <= 6
