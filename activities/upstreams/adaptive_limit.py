"""The limit of requests in flight, adapted to the responses of an upstream.

Additive increase and multiplicative decrease, between 1 and a maximum. The *ceiling* is the best estimate of the
upstream's own limit: after a cut the limit grows fast up to the ceiling and slowly beyond it, so that it stays near the
ceiling most of the time. An outage looks like an overload at first, so the earlier ceiling is kept for a fast recovery.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST_PAUSE: Final = 0.5
MAX_PAUSE: Final = 4.0
"""Bounds in seconds of the growing pause while nothing gets through. One probe per pause costs little, and the maximum
is how late the end of an outage can be noticed."""

OUTAGE_ONSET: Final = 60.0
"""Seconds for which an overload may still turn out to be the beginning of an outage."""

RECOVERY_STEP: Final = 7.0
"""Added to the limit for each answer after an outage: eightfold each round trip, so a limit of 64 returns in three."""


class AdaptiveLimit:
    """Adapts a limit to responses. All times, such as ``sent_at`` of a request, are those of the clock passed in."""

    def __init__(
        self, maximum: float, clock: Callable[[], float], timeout: float = float("inf"), cut: float = 2.0
    ) -> None:
        """Args: ``timeout`` is the timeout of a request in seconds; ``cut`` is the divisor of the limit on overload. It
        must be at least the factor by which the limit may grow at once, or what remains would look like an outage.
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
        """Whether the limit, after a cut, has reached the ceiling again."""
        return self._ceiling <= self.limit < self.maximum

    def allow(self, maximum: float) -> None:
        """Change the maximum. A limit that has been cut ignores a higher maximum: it grows only with answers."""
        if self.is_cut and maximum > self.maximum:
            return
        self._ceiling = maximum if self._ceiling >= self.maximum else min(self._ceiling, maximum)
        self._ceiling_before = maximum if self._ceiling_before >= self.maximum else min(self._ceiling_before, maximum)
        self.limit = maximum if not self.is_cut else min(self.limit, maximum)
        self.maximum = maximum

    def answered(self, sent_at: float) -> None:
        """Record an answered request."""
        self._answered_since_cut = True
        if sent_at >= self._cut_at:
            self._fruitless_pauses = 0
        if self.limit > 1 and self._clock() - sent_at > self._timeout / 2:
            return  # the engine's queue is already long
        if self._recovering:
            self.limit = min(self.limit + RECOVERY_STEP, self._ceiling)
            self._recovering = self.limit < self._ceiling
            return
        # Below the ceiling, each answer adds one, which doubles the limit with each round trip.
        step = 1.0 if self.limit < self._ceiling else 0.5 / self.limit
        self.limit = min(self.limit + step, float(self.maximum))

    def timed_out(self, sent_at: float) -> None:
        """Record a request that timed out beside others: the engine is slower than the requests arrive."""
        if sent_at >= self._cut_at:
            self.limit = self._ceiling = max(1.0, self.limit / self._cut)
            self._recovering = False
            self._begin_anew()
            self._answered_since_cut = True  # refusals that follow are not yet an outage

    def overloaded(self, sent_at: float, in_flight: int, *, has_retry_after: bool) -> float:
        """Record a refusal (429 or 503). Returns for how many seconds to send nothing at all.

        Args:
            sent_at: when the refused request was sent.
            in_flight: requests that still wait for their answer.
            has_retry_after: whether the response has a ``Retry-After``; the caller obeys it.
        """
        if sent_at < self._cut_at:
            # The request was sent before the cut, together with the one that caused it. Requests still in flight after
            # the last of these refusals are those that the upstream accepts. If there are none, there was no limit.
            if not (has_retry_after or self._recovering):
                self._ceiling = min(self._ceiling, float(in_flight)) if in_flight else self._ceiling_before
            return 0.0
        if not self._answered_since_cut and not has_retry_after:
            return self.unreachable(sent_at)
        if self._clock() - self._trouble_since > OUTAGE_ONSET:
            self._trouble_since = self._clock()
            self._ceiling_before = max(self._ceiling, self.limit)
        if not has_retry_after:
            self._ceiling = max(1.0, self.limit * 0.95)
        self.limit = max(1.0, self.limit / self._cut)
        self._recovering = False
        self._begin_anew()
        return 0.0

    def unreachable(self, sent_at: float) -> float:
        """Record that nothing gets through. Returns for how many seconds to send nothing at all."""
        if sent_at < self._cut_at and self._fruitless_pauses:
            return 0.0  # sent before this pause began, together with the request that caused it
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
