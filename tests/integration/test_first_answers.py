"""A batch whose requests all get the engine's 404: it fails with that sentence, and the rest is not sent."""

from __future__ import annotations

import pytest

from tests.integration.conftest import MakeStack
from tests.integration.stack import request, requests


# The shards end by themselves in the moment in which the workflow cancels them, which the SDK finds worth a warning.
@pytest.mark.filterwarnings("ignore:Cannot find activity to cancel")
@pytest.mark.parametrize("count", [50, 2000])
async def test_a_wrong_route_fails_the_batch(stack: MakeStack, count: int) -> None:
    it = await stack(latency=0.01)
    it.script(mode="status", status=404)
    finished = await it.run(requests(count))
    assert finished.batch.status == "failed"
    assert finished.batch.errors
    (error,) = finished.batch.errors.data or []
    assert error.code == "wrong_route"
    assert error.message
    assert "the first 50 requests with the same HTTP 404; the error file has its text" in error.message
    events = await it.history_bytes(finished.batch.id)
    assert b"the same HTTP 404" in events
    assert b"told to refuse" not in events
    received = it.engine.counters().received
    assert len(received) <= 50 + 64
    assert set(received.values()) == {1}
    refused = [line for line in finished.errors if line["response"]]
    assert sorted(line["custom_id"] for line in refused) == sorted(received)
    assert {line["response"]["body"]["error"]["message"] for line in refused} == {"The fake engine was told to refuse."}
    assert {line["error"]["code"] for line in finished.errors if not line["response"]} <= {"batch_failed"}
    assert len(finished.errors) == count


async def test_some_answers_among_them_show_that_the_route_is_right(stack: MakeStack) -> None:
    it = await stack(latency=0.01)
    it.script(mode="status", status=404, match="bad")
    finished = await it.run([request(f"{'ok' if n % 20 == 5 else 'bad'}-{n}") for n in range(300)])
    assert finished.batch.status == "completed"
    assert finished.counts == (300, 15, 285)
