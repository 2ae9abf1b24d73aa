"""Measures for how long an engine has answered none of the requests in flight, and whether that is unusual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 30.0
"""Seconds of silence that are unusual before the first answer ever: a model may have to be loaded first."""
MIN_SECONDS: Final = 10.0
"""Minimum seconds of silence that are unusual after that."""
TIMES: Final = 4.0
"""Silence is unusual from this multiple of the longest recent answer."""
FORGETS: Final = 0.98
"""Factor by which the longest recent answer decays with each answer."""


class Silence:
    """The silence of one model on one replica."""

    def __init__(self, clock: Callable[[], float], timeout: float) -> None:
        """Args: ``timeout`` is the timeout of a request in seconds."""
        self._clock = clock
        self._timeout = timeout
        self._since = clock()
        self.longest: float | None = None
        """Seconds that the longest recent answer took; ``None`` before the first answer."""

    def sent(self, in_flight: int) -> None:
        """Record that a request was sent. Args: ``in_flight`` is the number of requests in flight, including it."""
        if in_flight == 1:
            self._since = self._clock()

    def ended(self, sent_at: float, *, is_answered: bool) -> None:
        """Record that the engine has answered or failed a request."""
        self._since = self._clock()
        if is_answered:
            took = self._since - sent_at
            self.longest = max(took, (self.longest or 0.0) * FORGETS)

    def unusual(self, in_flight: int) -> float | None:
        """Return the seconds since the last answer if requests are in flight and that is longer than usual."""
        seconds = self._clock() - self._since
        return seconds if in_flight and seconds >= self._patience else None

    @property
    def _patience(self) -> float:
        if self.longest is None:
            return min(FIRST_SECONDS, self._timeout / 2)
        return max(self.longest * 1.5, min(max(MIN_SECONDS, self.longest * TIMES), self._timeout / 2))
