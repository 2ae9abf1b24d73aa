"""For how long an engine that has requests in flight has answered none of them, and whether that is unusual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 30.0
"""Without an answer, before there has ever been one: a model may have to be loaded first."""
MIN_SECONDS: Final = 10.0
TIMES: Final = 4.0
"""As long as the longest answer lately."""
FORGETS: Final = 0.98
"""What is left of the longest answer after each that was shorter."""


class Silence:
    """Of one model on one replica."""

    def __init__(self, clock: Callable[[], float], timeout: float) -> None:
        """Args: ``timeout`` is when a request is given up, in seconds."""
        self._clock = clock
        self._timeout = timeout
        self._since = clock()
        self.longest: float | None = None
        """Seconds that the longest answer took lately."""

    def sent(self, in_flight: int) -> None:
        """Args: ``in_flight`` counts this one."""
        if in_flight == 1:
            self._since = self._clock()

    def ended(self, sent_at: float, *, is_answered: bool) -> None:
        """The engine has answered a request, or failed it."""
        self._since = self._clock()
        if is_answered:
            took = self._since - sent_at
            self.longest = max(took, (self.longest or 0.0) * FORGETS)

    def unusual(self, in_flight: int) -> float | None:
        """Seconds since anything was answered, if that is longer than usual."""
        seconds = self._clock() - self._since
        return seconds if in_flight and seconds >= self._patience else None

    @property
    def _patience(self) -> float:
        if self.longest is None:
            return min(FIRST_SECONDS, self._timeout / 2)
        return max(self.longest * 1.5, min(max(MIN_SECONDS, self.longest * TIMES), self._timeout / 2))
