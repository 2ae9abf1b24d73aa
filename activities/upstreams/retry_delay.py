"""Computes how long a shard waits before its next attempt."""

from __future__ import annotations

import random
from typing import Final

FIRST_BACKOFF: Final = 0.5
MAX_BACKOFF: Final = 30.0
"""Bounds in seconds of the exponential backoff after a failed request."""

ALONE_SECONDS: Final = 60.0
"""Seconds over which the counted failures of a request that fails alone are spread: longer than a restart of most
engines, which looks the same. Each delay is twice the one before it, so that a transient failure costs little."""


def retry_delay(failures: int, pause: float, alone_of: int | None = None) -> float:
    """Return the delay in seconds, with up to 10 % of jitter.

    Args:
        failures: the largest number of counted failures of any request of the shard.
        pause: seconds until anything may be sent.
        alone_of: if a request fails with no other to compare it with, the number of failures after which it becomes an
            error line.
    """
    backoff = min(FIRST_BACKOFF * 2 ** min(failures, 10), MAX_BACKOFF)
    if alone_of is not None:
        retries = max(1, alone_of - 1)
        backoff = max(backoff, ALONE_SECONDS * 2 ** min(max(0, failures - 1), retries - 1) / (2**retries - 1))
    # Jitter, so that shards that waited for the same pause do not all start at once.
    return max(pause, backoff) * random.uniform(1, 1.1)
