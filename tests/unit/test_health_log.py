"""What the log says of an upstream that goes and comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from activities.upstreams.config import Upstream
from activities.upstreams.health_log import AGAIN_SECONDS, HealthLog
from activities.upstreams.judgement import Outcome
from activities.upstreams.lanes import Flight
from activities.upstreams.waits import wait_after
from tests.fakes.worker import refusal
from tests.unit.test_run_requests import REFUSED

GPU = Upstream(name="gpu", urls=("http://user:secret@gpu-1:8000/v1?key=secret", "http://gpu-2:8000/v1"))
LABEL = 'upstream "gpu" (http://gpu-1:8000/v1)'


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def flight(replica: int = 0, pause: float = 0.0) -> Flight:
    lane = cast(Any, SimpleNamespace(pause_left=pause))
    return Flight(replica, "m", "batch_1", lane, cast(Any, None))


def test_away_and_back_are_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    health = HealthLog(GPU, clock)
    down = wait_after(REFUSED, GPU)
    for second in range(500):
        clock.now = second / 10
        health.saw(flight(), Outcome.UNREACHABLE, down)
    health.saw(flight(1), Outcome.ANSWERED, None)  # the other replica
    clock.now = 140
    for _ in range(500):
        health.saw(flight(), Outcome.ANSWERED, None)
    assert caplog.messages == [
        f"{LABEL} refuses connections; its requests wait",
        f"{LABEL} answers again, after 140 s",
    ]


def test_a_failure_beside_answers_is_not_logged_and_one_that_nobody_mends_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = HealthLog(GPU, Clock())
    wrong_key = wait_after(refusal(401), GPU)
    health.saw(flight(), Outcome.FAILED, wrong_key)
    assert caplog.messages == []
    health.saw(flight(pause=1.0), Outcome.FAILED, wrong_key)
    (line,) = caplog.messages
    assert line.startswith(f"{LABEL} rejects the API key")
    assert line.endswith("; its requests wait; this does not end by itself")
    assert "secret" not in line


def test_what_comes_and_goes_is_said_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    health = HealthLog(GPU, clock)
    for second in range(int(2 * AGAIN_SECONDS)):
        clock.now = float(second)
        health.saw(flight(pause=1.0), Outcome.OVERLOADED, wait_after(refusal(503, retry_after=str(second + 1)), GPU))
        health.saw(flight(), Outcome.ANSWERED, None)
    assert len(caplog.messages) == 4
