"""Logs when an upstream goes down, refuses requests, or is back: one line each, however many requests are affected."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Final

from activities.upstreams.config import Upstream
from activities.upstreams.judgement import Outcome
from activities.upstreams.labels import upstream_label
from activities.upstreams.lanes import Flight
from workflows.waits import EndsBy, Wait

log = logging.getLogger("everbatch.upstreams")

AGAIN_SECONDS: Final = 30.0
"""Minimum seconds before the same line is logged again, for an upstream whose state keeps changing."""
_DIGITS: Final = re.compile("[0-9]+")


class HealthLog:
    """Logs the state of one upstream as this worker process sees it."""

    def __init__(self, upstream: Upstream, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream = upstream
        self._clock = clock
        self._away: dict[int, tuple[float, str]] = {}  # by replica: since when it is logged as down, and the reason
        self._logged_at: dict[tuple[int, str], float] = {}

    def saw(self, flight: Flight, outcome: Outcome, wait: Wait | None) -> None:
        """Record that a request has ended. Call this after the limiter has recorded it."""
        if outcome is Outcome.ANSWERED:
            if flight.replica in self._away:
                self._is_back(flight.replica)
        elif wait and (outcome is Outcome.UNREACHABLE or flight.lane.pause_left > 0):
            self._waits(flight.replica, wait)

    def _waits(self, replica: int, wait: Wait) -> None:
        now, what = self._clock(), _DIGITS.sub("", wait.text)
        since, why = self._away.get(replica, (now, ""))
        if what == why or now - self._logged_at.get((replica, what), float("-inf")) < AGAIN_SECONDS:
            return
        self._logged_at[replica, what] = now
        self._away[replica] = since, what
        act = "; this does not end by itself" if wait.ends_by is EndsBy.OPERATOR else ""
        log.warning("%s; its requests wait%s", wait.text, act)

    def _is_back(self, replica: int) -> None:
        since, _ = self._away.pop(replica)
        log.warning("%s answers again, after %.0f s", upstream_label(self._upstream, replica), self._clock() - since)
