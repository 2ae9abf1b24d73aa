"""Decides which failed calls to a Batch API to repeat, and how long to wait before each attempt."""

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
    """Repeats calls that fail for a reason that may pass, for ``seconds`` from the first failure of a call.

    ``on_retry`` is called with each error before the wait for the next attempt.
    """

    def __init__(
        self, seconds: float, on_retry: Callable[[APIError], object], sleep: Callable[[float], Awaitable[object]]
    ) -> None:
        self._seconds = seconds
        self._on_retry = on_retry
        self._sleep = sleep

    async def call(self, attempt: Callable[[], Awaitable[T]], advanced: Callable[[], bool] = lambda: False) -> T:
        """Make a call, and repeat it until it succeeds.

        The time limit starts again if the last attempt has ``advanced`` although it failed.

        Raises:
            openai.APIError: the last error, if repeating the call cannot help or the time limit has passed.
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
                self._on_retry(error)
            await self._sleep(wait)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)


def is_transient(error: APIError) -> bool:
    """Return whether the same call may succeed later. The server's header ``x-should-retry`` takes precedence.

    A 409 is a lasting conflict unless the server says otherwise. The SDK would repeat it, for example for the cancel
    of a batch that has ended.
    """
    if not isinstance(error, APIStatusError):
        return isinstance(error, APIConnectionError)
    said = error.response.headers.get("x-should-retry")
    if said in ("true", "false"):
        return said == "true"
    if error.code == "insufficient_quota":  # OpenAI sends this 429 until the account's quota is raised by a payment
        return False
    return error.status_code in (408, 429) or error.status_code >= 500


def requested_pause(error: APIError) -> float:
    """Return the seconds that the server requests in ``Retry-After`` or ``retry-after-ms``; 0 if it requests none."""
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
