"""How long a shard waits before its next attempt."""

from __future__ import annotations

import random
from typing import Final

FIRST_BACKOFF: Final = 0.5
MAX_BACKOFF: Final = 30.0
"""Bounds in seconds of the growing wait before a failed request is tried again."""

ALONE_SECONDS: Final = 60.0
"""From the first to the last failure that count of a request that fails alone: longer than a restart of most engines,
for which it might be taken. Each wait is twice the one before it, so that a passing failure costs little."""


def retry_delay(failures: int, pause: float, alone_of: int | None = None) -> float:
    """Seconds.

    Args:
        failures: that count, of the request of the shard that has most.
        pause: seconds until anything may be sent.
        alone_of: where a request fails with no other to compare it with, the failures that make it an error line.
    """
    backoff = min(FIRST_BACKOFF * 2 ** min(failures, 10), MAX_BACKOFF)
    if alone_of is not None:
        retries = max(1, alone_of - 1)
        backoff = max(backoff, ALONE_SECONDS * 2 ** min(max(0, failures - 1), retries - 1) / (2**retries - 1))
    # Shards that waited for the same pause should not come all at once.
    return max(pause, backoff) * random.uniform(1, 1.1)
