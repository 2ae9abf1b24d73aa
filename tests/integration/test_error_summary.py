"""What failed, by code: while a batch runs, at its end, in lists, and never a message in Temporal."""

from __future__ import annotations

from typing import Any

from openai.types import Batch

from tests.integration.conftest import MakeStack
from tests.integration.stack import request, requests, until
from workflows.ids import BatchRef
from workflows.types import BatchRecord


def summary_of(batch: Batch) -> list[dict[str, Any]]:
    return (batch.model_extra or {})["error_summary"]


async def test_single_requests_and_the_end(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=400, match="bad")
    finished = await it.run([request("bad-1"), request("ok-2"), request("bad-3")])
    (message,) = {line["error"]["message"] for line in finished.errors}
    code = finished.error_codes["bad-1"]
    assert summary_of(finished.batch) == [{"code": code, "count": 2, "first_lines": [1, 3], "message": message}]
    (listed,) = (await it.openai.batches.list()).data
    assert summary_of(listed) == [{"code": code, "count": 2, "first_lines": [1, 3], "message": None}]
    events = await it.history_bytes(finished.batch.id)
    assert code.encode() in events
    assert message.encode() not in events
    record = it.catalog.get_final(BatchRef("default", finished.batch.id))
    assert isinstance(record, BatchRecord)
    assert record.error_messages == {code: message}


async def test_a_shard_that_runs_and_a_cancel(stack: MakeStack) -> None:
    it = await stack(max_in_flight=10, latency=30)
    it.script(mode="status", status=400, times=10)
    batch_id = await it.submit(requests(70))
    running = await it.until(batch_id, lambda batch: summary_of(batch) and summary_of(batch)[0]["count"] == 10)
    (one,) = summary_of(running)
    assert (len(one["first_lines"]), running.status) == (5, "in_progress")
    assert one["message"]

    async def listed() -> bool:
        (batch,) = (await it.openai.batches.list()).data
        return summary_of(batch) == [{**one, "message": None}]

    await until(listed, "the list says so too")
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    cancelled, refused = summary_of(finished.batch)
    assert (cancelled["code"], cancelled["count"], cancelled["message"]) == (
        "batch_cancelled",
        60,
        "This request was not executed because the batch was cancelled.",
    )
    assert refused == one


async def test_a_retry_counts_the_errors_that_it_takes_over(stack: MakeStack) -> None:
    it = await stack(max_line_bytes=1 << 20)
    it.script(mode="status", status=400, match="bad")
    first = await it.run([request("bad-1"), request("long-2", padding="x" * (1 << 20)), request("bad-3")])
    codes = [one["code"] for one in summary_of(first.batch)]
    assert len(codes) == 2, summary_of(first.batch)
    it.script(mode="hang")
    answer = await it.http.post(f"/v1/batches/{first.batch.id}/retry", json={"codes": codes[:1]})
    running = await it.until(answer.json()["id"], lambda batch: batch.status == "in_progress")
    assert [(one["code"], one["first_lines"]) for one in summary_of(running)] == [(codes[1], [2])]
    await it.openai.batches.cancel(running.id)
    second = await it.finished(running.id)
    assert [one["code"] for one in summary_of(second.batch)] == ["batch_cancelled", codes[1]]
