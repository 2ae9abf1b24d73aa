"""The life of a batch as a list: while it runs, and from its final record."""

from __future__ import annotations

import time
from typing import Any

from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, progress_of, requests, until


async def events_of(it: Stack, batch_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = await it.http.get(f"/v1/batches/{batch_id}/events", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def wait_of(it: Stack, batch_id: str) -> dict[str, Any]:
    async def probe() -> dict[str, Any] | None:
        found = await events_of(it, batch_id)
        return next((event for event in found if event["type"] == "wait"), None)

    event = await until(probe, "a wait among the events")
    assert event
    return event


async def test_an_outage_and_the_end_in_pages(stack: MakeStack) -> None:
    it = await stack(max_in_flight=10)
    it.script(mode="refuse", seconds=4)
    batch_id = await it.submit(requests(60))
    under_way = await wait_of(it, batch_id)
    assert under_way["ended_at"] is None
    assert under_way["message"].startswith("Waiting for ")
    assert "refuses connections" in under_way["message"]
    finished = await it.finished(batch_id)
    assert finished.counts == (60, 60, 0)
    found = await events_of(it, batch_id)
    assert [event["type"] for event in found] == ["created", "validated", "wait", "files_written", "completed"]
    texts = [event["message"] for event in found]
    assert texts[1].startswith("Validated 60 requests in ")
    assert texts[2].startswith("Waited ")
    assert "refuses connections" in texts[2]
    assert texts[4].endswith("60 requests, 60 completed, 0 failed.")
    assert 1 <= found[2]["ended_at"] - found[2]["created_at"] <= 15
    pages = [await events_of(it, batch_id, limit=2, **({"after": after} if after else {})) for after in
             (None, found[1]["id"], found[3]["id"])]  # fmt: skip
    assert [event for page in pages for event in page] == found
    for query in ({"after": "evt_x"}, {"limit": 0}):
        assert (await it.http.get(f"/v1/batches/{batch_id}/events", params=query)).status_code == 400
    assert (await it.http.get(f"/v1/batches/batch_{'0' * 32}/events")).status_code == 404


async def test_a_batch_that_expires_in_an_outage_keeps_its_wait_and_its_errors(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="refuse", seconds=60)
    finished = await it.finished(await it.submit(requests(3), window="2s"))
    assert finished.batch.status == "expired"
    found = await events_of(it, finished.batch.id)
    kinds = [event["type"] for event in found]
    assert kinds == ["created", "validated", "wait", "files_written", "errors", "expired"]
    assert "refuses connections" in found[2]["message"]
    assert found[2]["ended_at"] >= found[2]["created_at"]
    assert found[4]["message"] == "3 × batch_expired (first line 1)"


async def test_who_paused_resumed_and_cancelled_it(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang")
    batch_id = await it.submit(requests(2))
    await it.until(batch_id, lambda batch: progress_of(batch)["in_flight"] == 2)
    await it.http.post(f"/v1/batches/{batch_id}/pause")
    await it.http.post(f"/v1/batches/{batch_id}/pause")
    await it.http.post(f"/v1/batches/{batch_id}/resume")
    await it.workflow(batch_id).signal("pause")
    await it.workflow(batch_id).signal("resume", 'by tenant "ann" through the API')
    await it.http.post(f"/v1/batches/{batch_id}/cancel")
    assert (await it.finished(batch_id)).batch.status == "cancelled"
    texts = [event["message"] for event in await events_of(it, batch_id)]
    assert texts[2:7] == [
        'Paused by tenant "default" through the API.',
        'Resumed by tenant "default" through the API.',
        "Paused in Temporal.",
        'Resumed in Temporal (by tenant "ann" through the API).',
        'Cancelled by tenant "default" through the API.',
    ]
    assert texts[-1].startswith("Cancelled after ")
    assert texts[-1].endswith("All 2 requests failed.")
    other = await it.submit(requests(2))
    await it.until(other, lambda batch: progress_of(batch)["in_flight"] == 2)
    await it.workflow(other).cancel(reason='by tenant "ann" through the API' + "x" * 10_000)
    await it.finished(other)
    message = next(event["message"] for event in await events_of(it, other) if event["type"] == "cancelling")
    assert message.startswith('Cancelled in Temporal (by tenant "ann" through the APIx')
    assert len(message) < 300
    assert abs(time.time() - (await events_of(it, batch_id))[-1]["created_at"]) < 60
