"""How soon the engine is free of a batch that is cancelled."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from activities.heartbeats import BEAT_SECONDS, HEARTBEAT_THROTTLE
from tests.integration.conftest import MakeStack
from tests.integration.stack import requests, until

IN_FLIGHT: Final = 64
ROUNDS: Final = 4
AT_ONCE: Final = 5


@pytest.mark.parametrize("count", [1, 200], ids=["one", "shards"])
async def test_nothing_is_in_flight_a_second_after_a_cancel(stack: MakeStack, count: int) -> None:
    """At whatever time between two heartbeats it comes."""
    it = await stack(latency=60.0, max_in_flight=IN_FLIGHT)

    async def is_busy() -> bool:
        return it.engine.counters().in_flight >= min(IN_FLIGHT, AT_ONCE * count)

    async def is_free() -> bool:
        return it.engine.counters().in_flight == 0

    for number in range(ROUNDS):
        prefixes = [f"{number}-{batch}" for batch in range(AT_ONCE)]
        batch_ids = await asyncio.gather(*(it.submit(requests(count, prefix=prefix)) for prefix in prefixes))
        await until(is_busy, "busy")
        await asyncio.sleep(BEAT_SECONDS + HEARTBEAT_THROTTLE.total_seconds() * number / ROUNDS)
        await asyncio.gather(*(it.openai.batches.cancel(batch_id) for batch_id in batch_ids))
        await until(is_free, "free", 1)
        for batch_id in batch_ids:
            finished = await it.finished(batch_id)
            assert (finished.batch.status, finished.counts) == ("cancelled", (count, 0, count))
