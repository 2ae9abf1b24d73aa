"""Asks an upstream's replicas for their queues, while requests of ours are there."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from activities.upstreams.client import InferenceClient
from activities.upstreams.engine_load import read_load
from activities.upstreams.limiter import Limiter

log = logging.getLogger("everbatch")

INTERVAL: Final = 1.0
LONGEST_INTERVAL: Final = 300.0
"""Seconds between two questions, the longest where nothing that is known was answered for long."""


async def watch_load(client: InferenceClient, limiter: Limiter, replica: int) -> None:
    """Tell the limiter what a replica tells of its queue, once a second, for ever."""
    interval, tells = INTERVAL, False
    while True:
        await asyncio.sleep(interval)
        if not limiter.in_flight_at(replica):
            continue
        text = await client.get_metrics(replica)
        load = read_load(text) if text else None
        if load is None:
            interval = min(2 * interval, LONGEST_INTERVAL)
            continue
        if not tells:
            log.info("upstream %s tells its queue: it decides how many requests are in flight", client.upstream.name)
        interval, tells = INTERVAL, True
        limiter.told(replica, load)
