"""Measures the recent rate of ended requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

WINDOW_SECONDS: Final = 0.1


class AnswerRate:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.per_second = 0.0
        self._clock = clock
        self._since = clock()
        self._count = 0

    def count(self) -> None:
        """Record that a request has ended."""
        self._count += 1
        elapsed = self._clock() - self._since
        if elapsed >= WINDOW_SECONDS:
            self.per_second = (self.per_second + self._count / elapsed) / 2
            self._since, self._count = self._clock(), 0
