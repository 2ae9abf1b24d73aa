"""A small batch does not wait for a large one that came before it."""

from __future__ import annotations

from tests.integration.conftest import MakeStack
from tests.integration.stack import requests


async def test_five_requests_behind_two_thousand(stack: MakeStack) -> None:
    it = await stack(latency=0.05, max_in_flight=64)
    large = await it.submit(requests(2000, prefix="large"))
    await it.until(large, lambda batch: batch.request_counts and batch.request_counts.completed > 0)
    small = await it.finished(await it.submit(requests(5, prefix="small")))
    assert small.counts == (5, 5, 0)
    # Long before: most of the large one is still to do.
    assert it.engine.counters().answered_total < 1500
    finished = await it.finished(large)
    assert finished.counts == (2000, 2000, 0)
    assert finished.batch.completed_at
    assert small.batch.completed_at
    assert finished.batch.completed_at >= small.batch.completed_at


async def test_shards_start_in_the_order_of_the_file(stack: MakeStack) -> None:
    it = await stack(max_in_flight=1)
    await it.finished(await it.submit(requests(1920)))
    sent = list(it.engine.counters().received)
    # The first shard has a queue of its own, and takes turns with the second.
    began = sorted(range(1, 60), key=lambda shard: sent.index(f"r-{32 * shard}"))
    # Polls that are out together may bring neighbours in either order.
    assert max(abs(shard - place) for place, shard in enumerate(began, 1)) <= 3, began
