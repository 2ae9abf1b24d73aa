"""When an engine is reported to answer nothing."""

from __future__ import annotations

import pytest

from activities.upstreams.silence import FIRST_SECONDS, MIN_SECONDS, TIMES, Silence


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("took", "patience"),
    [(None, FIRST_SECONDS), (0.5, MIN_SECONDS), (20.0, 20.0 * TIMES), (500.0, 750.0)],
    ids=["never", "quick", "slow", "as long as it may"],
)
def test_silence_is_unusual_after_several_times_the_longest_answer(took: float | None, patience: float) -> None:
    clock = Clock()
    silence = Silence(clock, 600)
    if took is not None:
        silence.sent(1)
        clock.now += took
        silence.ended(0.0, is_answered=True)
    clock.now += 1000  # nothing is in flight
    silence.sent(1)
    silence.sent(2)
    clock.now += patience - 1
    assert silence.unusual(2) is None
    clock.now += 1
    assert silence.unusual(2) == patience
    assert silence.unusual(0) is None
    silence.ended(clock.now - 1, is_answered=False)
    assert silence.unusual(1) is None


def test_one_answer_that_took_long_is_forgotten_with_time() -> None:
    clock = Clock()
    silence = Silence(clock, 600)
    clock.now = 100.0
    silence.ended(0.0, is_answered=True)
    for _ in range(200):
        silence.ended(clock.now - 1, is_answered=True)
    assert silence.longest is not None
    assert 1 <= silence.longest < 3
