"""How many requests an upstream is sent at once: learned from what it answers.

Additive increase, halved on overload, between 1 and a maximum. The *ceiling* is what is known of the upstream's own
limit: after a cut the limit climbs fast up to there and slowly from there on, so that it spends its time near it. An
outage looks like an overload at first; what was known before it is kept, so that the way back is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 4.0
"""Bounds of the growing pause, in seconds, while nothing gets through. One probe a pause costs little, and the
bound is how late the end of an outage can be noticed."""

OUTAGE_ONSET: Final = 10.0
"""Seconds of overload that may still turn out to have been the beginning of an outage."""


class AdaptiveLimit:
    """All times are of the clock that is given; ``sent_at`` is when the answered request was sent."""

    def __init__(self, maximum: int, clock: Callable[[], float]) -> None:
        self.maximum = maximum
        self.limit = float(maximum)
        self._clock = clock
        self._ceiling = self._ceiling_before = float(maximum)
        self._cut_at = self._trouble_since = float("-inf")
        self._answered_since_cut = True
        self._fruitless_pauses = 0

    def answered(self, sent_at: float) -> None:
        """Something got through."""
        self._answered_since_cut = True
        if sent_at >= self._cut_at:
            self._fruitless_pauses = 0
        # Below the ceiling one more per answer, which doubles the limit each round trip.
        step = 1.0 if self.limit < self._ceiling else 0.5 / self.limit
        self.limit = min(self.limit + step, float(self.maximum))

    def overloaded(self, sent_at: float, in_flight: int, retry_after: float | None) -> float:
        """The upstream asked for less. Returns for how many seconds to send nothing at all.

        Args:
            sent_at: as everywhere.
            in_flight: requests that still wait for their answer.
            retry_after: seconds that the upstream named.
        """
        if sent_at < self._cut_at:
            # Of the volley that met the cut. What is left in flight at its end is what the upstream let in; if that is
            # nothing, it was not a limit that the volley met.
            if not retry_after:
                self._ceiling = min(self._ceiling, float(in_flight)) if in_flight else self._ceiling_before
            return retry_after or 0.0
        if not self._answered_since_cut and not retry_after:
            return self.unreachable(sent_at, None)
        if self._clock() - self._trouble_since > OUTAGE_ONSET:
            self._trouble_since = self._clock()
            self._ceiling_before = max(self._ceiling, self.limit)
        if not retry_after:
            self._ceiling = max(1.0, self.limit * 0.95)
        self.limit = max(1.0, self.limit / 2)
        self._begin_anew()
        return retry_after or 0.0

    def unreachable(self, sent_at: float, retry_after: float | None) -> float:
        """Nothing gets through. Returns for how many seconds to send nothing at all."""
        if sent_at < self._cut_at and self._fruitless_pauses:
            return 0.0  # of the same volley as the one that began this pause
        pause = retry_after or min(FIRST_PAUSE * 2**self._fruitless_pauses, LONGEST_PAUSE)
        self._fruitless_pauses = min(self._fruitless_pauses + 1, 10)
        if self._clock() - self._trouble_since <= OUTAGE_ONSET:
            self._ceiling = max(self._ceiling, self._ceiling_before)
        self._ceiling = max(self._ceiling, self.limit)
        self.limit = 1.0  # one probe when the pause is over
        self._begin_anew()
        return pause

    def _begin_anew(self) -> None:
        self._cut_at = self._clock()
        self._answered_since_cut = False
