"""The limit of requests in flight, adapted to the responses of an upstream.

Additive increase, halved on overload, between 1 and a maximum. The *ceiling* is what is known of the upstream's own
limit: after a cut the limit climbs fast up to there and slowly from there on, so that it spends its time near it. An
outage looks like an overload at first; what was known before it is kept, so that the way back is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST_PAUSE: Final = 0.5
MAX_PAUSE: Final = 4.0
"""Bounds of the growing pause, in seconds, while nothing gets through. One probe a pause costs little, and the
bound is how late the end of an outage can be noticed."""

OUTAGE_ONSET: Final = 60.0
"""Seconds of overload that may still turn out to have been the beginning of an outage."""

RECOVERY_STEP: Final = 7.0
"""More in flight for each answer after an outage: eight times as many each round trip, so that 64 are back in three."""


class AdaptiveLimit:
    """All times are of the clock that is given; ``sent_at`` is when the answered request was sent."""

    def __init__(
        self, maximum: float, clock: Callable[[], float], timeout: float = float("inf"), cut: float = 2.0
    ) -> None:
        """Args: ``timeout`` is after how many seconds a request is given up; ``cut`` is by what overload divides the
        limit: at least by what it may have grown at once, or the rest would look like an outage.
        """
        self._cut = cut
        self._timeout = timeout
        self.maximum = maximum
        self.limit = float(maximum)
        self._clock = clock
        self._ceiling = self._ceiling_before = float(maximum)
        self._cut_at = self._trouble_since = float("-inf")
        self._answered_since_cut = True
        self._fruitless_pauses = 0
        self._recovering = False

    @property
    def is_cut(self) -> bool:
        return self.limit < self.maximum

    @property
    def is_back(self) -> bool:
        """Cut, and as high again as the upstream is known to let in."""
        return self._ceiling <= self.limit < self.maximum

    def allow(self, maximum: float) -> None:
        """Another maximum. What has been cut grows by answers alone."""
        if self.is_cut and maximum > self.maximum:
            return
        self._ceiling = maximum if self._ceiling >= self.maximum else min(self._ceiling, maximum)
        self._ceiling_before = maximum if self._ceiling_before >= self.maximum else min(self._ceiling_before, maximum)
        self.limit = maximum if not self.is_cut else min(self.limit, maximum)
        self.maximum = maximum

    def answered(self, sent_at: float) -> None:
        """Something got through."""
        self._answered_since_cut = True
        if sent_at >= self._cut_at:
            self._fruitless_pauses = 0
        if self.limit > 1 and self._clock() - sent_at > self._timeout / 2:
            return  # the engine's queue is long already
        if self._recovering:
            self.limit = min(self.limit + RECOVERY_STEP, self._ceiling)
            self._recovering = self.limit < self._ceiling
            return
        # Below the ceiling one more per answer, which doubles the limit each round trip.
        step = 1.0 if self.limit < self._ceiling else 0.5 / self.limit
        self.limit = min(self.limit + step, float(self.maximum))

    def timed_out(self, sent_at: float) -> None:
        """Requests waited too long beside others: the engine works through them slower than they come."""
        if sent_at >= self._cut_at:
            self.limit = self._ceiling = max(1.0, self.limit / self._cut)
            self._recovering = False
            self._begin_anew()
            self._answered_since_cut = True  # refusals after it are not yet an outage

    def overloaded(self, sent_at: float, in_flight: int, *, asks_to_wait: bool) -> float:
        """The upstream asked for less. Returns for how many seconds to send nothing at all.

        Args:
            sent_at: as everywhere.
            in_flight: requests that still wait for their answer.
            asks_to_wait: whether it named a time, which is not heeded here.
        """
        if sent_at < self._cut_at:
            # Of the volley that met the cut. What is left in flight at its end is what the upstream let in; if that is
            # nothing, it was not a limit that the volley met.
            if not (asks_to_wait or self._recovering):
                self._ceiling = min(self._ceiling, float(in_flight)) if in_flight else self._ceiling_before
            return 0.0
        if not self._answered_since_cut and not asks_to_wait:
            return self.unreachable(sent_at)
        if self._clock() - self._trouble_since > OUTAGE_ONSET:
            self._trouble_since = self._clock()
            self._ceiling_before = max(self._ceiling, self.limit)
        if not asks_to_wait:
            self._ceiling = max(1.0, self.limit * 0.95)
        self.limit = max(1.0, self.limit / self._cut)
        self._recovering = False
        self._begin_anew()
        return 0.0

    def unreachable(self, sent_at: float) -> float:
        """Nothing gets through. Returns for how many seconds to send nothing at all."""
        if sent_at < self._cut_at and self._fruitless_pauses:
            return 0.0  # of the same volley as the one that began this pause
        pause = min(FIRST_PAUSE * 2**self._fruitless_pauses, MAX_PAUSE)
        self._fruitless_pauses = min(self._fruitless_pauses + 1, 10)
        if self._clock() - self._trouble_since <= OUTAGE_ONSET:
            self._ceiling = max(self._ceiling, self._ceiling_before)
        self._ceiling = max(self._ceiling, self.limit)
        self.limit = 1.0  # one probe when the pause is over
        self._recovering = True
        self._begin_anew()
        return pause

    def _begin_anew(self) -> None:
        self._cut_at = self._clock()
        self._answered_since_cut = False
