"""Watches an upstream's replicas while requests are in flight, and polls their metrics for the engine's queue."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from activities.upstreams.client import InferenceClient
from activities.upstreams.engine_load import read_load
from activities.upstreams.limiter import Limiter

log = logging.getLogger("everbatch")

INTERVAL: Final = 1.0
MAX_INTERVAL: Final = 300.0
"""Seconds between two polls. The interval doubles up to the maximum while the response has no known metrics."""


async def watch_load(client: InferenceClient, limiter: Limiter, replica: int) -> None:
    """Update the limiter every second while requests are in flight at a replica, with the engine's load if known.

    Runs until it is cancelled.
    """
    interval, requested_at, reports = INTERVAL, float("-inf"), False
    while True:
        await asyncio.sleep(INTERVAL)
        if not limiter.in_flight_at(replica):
            continue
        load = None
        if time.monotonic() - requested_at >= interval:
            requested_at = time.monotonic()
            text = await client.get_metrics(replica)
            load = read_load(text) if text else None
            interval = INTERVAL if load else min(2 * interval, MAX_INTERVAL)
            if load and not reports:
                log.info(
                    "upstream %s reports its queue, which decides how many requests are in flight", client.upstream.name
                )
            reports |= load is not None
        limiter.observe_load(replica, load)
