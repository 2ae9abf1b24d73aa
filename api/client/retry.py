"""Which failed calls to a Batch API are worth repeating, and how long to wait before that."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from openai import APIConnectionError, APIError, APIStatusError

FIRST_PAUSE_SECONDS: Final = 0.5
MAX_PAUSE_SECONDS: Final = 10.0

T = TypeVar("T")


class Patience:
    """Repeats calls that fail for a reason that may pass.

    Args:
        seconds: how long, counted from the first failure of a call.
        away: called with each failure before the wait for the next attempt.
        sleep: waits, in seconds.
    """

    def __init__(
        self, seconds: float, away: Callable[[APIError], object], sleep: Callable[[float], Awaitable[object]]
    ) -> None:
        self._seconds = seconds
        self._away = away
        self._sleep = sleep

    async def call(self, attempt: Callable[[], Awaitable[T]], advanced: Callable[[], bool] = lambda: False) -> T:
        """Call until it succeeds.

        Args:
            attempt: the call.
            advanced: whether the last attempt achieved something although it failed. If so, the time starts again.

        Raises:
            openai.APIError: the last one, when repeating will not help or the time is over.
        """
        gives_up: float | None = None
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await attempt()
            except APIError as error:
                if advanced():
                    gives_up, pause = None, FIRST_PAUSE_SECONDS
                wait = max(pause, requested_pause(error))
                gives_up = gives_up or time.monotonic() + self._seconds
                if not is_transient(error) or time.monotonic() + wait > gives_up:
                    raise
                self._away(error)
            await self._sleep(wait)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)


def is_transient(error: APIError) -> bool:
    """Whether the same call may succeed later. The server's own word in ``x-should-retry`` comes first.

    A 409 is a conflict that stays, unless the server says otherwise: the SDK repeats it, and would repeat the cancel
    of a batch that has ended.
    """
    if not isinstance(error, APIStatusError):
        return isinstance(error, APIConnectionError)
    said = error.response.headers.get("x-should-retry")
    if said in ("true", "false"):
        return said == "true"
    if error.code == "insufficient_quota":  # a 429 of hosted OpenAI that waits for a payment
        return False
    return error.status_code in (408, 429) or error.status_code >= 500


def requested_pause(error: APIError) -> float:
    """Seconds that the server asks for in ``Retry-After`` or ``retry-after-ms``; 0 if it does not."""
    if not isinstance(error, APIStatusError):
        return 0.0
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            parsed = email.utils.parsedate_tz(text)
            seconds = email.utils.mktime_tz(parsed) - time.time() if parsed else 0.0
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    return 0.0
