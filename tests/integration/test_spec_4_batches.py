"""SPEC.md sections 4.3, 4.5, 4.6 and 6 over a whole run: which members a batch has set in each terminal state."""

from __future__ import annotations

from typing import Any

from openai.types import Batch

from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, Stack, request, requests

WHEN = (
    *("created_at", "expires_at", "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
    *("cancelling_at", "cancelled_at"),
)
FILES = ("output_file_id", "error_file_id")


def is_set(batch: Batch) -> set[str]:
    """Times and files that are not null, but for the two times that always are there."""
    return {name for name in (*WHEN, *FILES) if getattr(batch, name) is not None} - {"created_at", "expires_at"}


def check_order(batch: Batch, *names: str) -> None:
    times = [batch.created_at, *(getattr(batch, name) for name in names)]
    assert times == sorted(times)
    assert batch.expires_at
    assert batch.expires_at - batch.created_at in (2, 24 * 3600)


async def half_done(it: Stack, window: str) -> str:
    it.script(mode="hang", match="hangs")
    batch_id = await it.submit([request("ok-0"), request("hangs-1")], window=window)
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 1)
    return batch_id


async def test_4_3_a_completed_batch_and_its_model_and_usage_on_the_way(stack: MakeStack) -> None:
    it = await stack(worker=False)
    created = await it.create(await it.upload(requests(2)))
    batch_id = created.id
    assert (is_set(created), created.model, created.status) == (set(), None, "validating")
    assert created.usage
    assert created.usage.total_tokens == 0
    assert created.request_counts
    assert created.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    it.script(mode="hang", match="r-1")
    await it.start_worker()
    running = await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 1)
    assert (is_set(running), running.model, running.status) == ({"in_progress_at"}, "fake", "in_progress")
    assert running.request_counts
    assert running.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 0}
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)

    it.script()
    batch = (await it.run(requests(2))).batch
    assert is_set(batch) == {"in_progress_at", "finalizing_at", "completed_at", "output_file_id"}
    check_order(batch, "in_progress_at", "finalizing_at", "completed_at")
    assert batch.model == "fake"


async def test_4_3_a_batch_that_fails_its_validation(stack: MakeStack) -> None:
    it = await stack()
    finished = await it.run([request("ok"), "no json"])
    batch = finished.batch
    assert (batch.status, is_set(batch), finished.counts) == ("failed", {"failed_at"}, (0, 0, 0))
    check_order(batch, "failed_at")
    assert batch.errors
    assert batch.model is None


async def test_4_3_an_expired_batch(stack: MakeStack) -> None:
    it = await stack()
    finished = await it.finished(await half_done(it, "2s"))
    batch = finished.batch
    assert is_set(batch) == {"in_progress_at", "finalizing_at", "expired_at", *FILES}
    check_order(batch, "in_progress_at", "finalizing_at", "expired_at")
    assert (batch.status, finished.counts, batch.errors) == ("expired", (2, 1, 1), None)
    assert finished.error_codes == {"hangs-1": "batch_expired"}


async def test_4_3_a_batch_that_is_cancelled_mid_run(stack: MakeStack) -> None:
    it = await stack()
    batch_id = await half_done(it, "24h")
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    batch = finished.batch
    assert is_set(batch) == {"in_progress_at", "cancelling_at", "finalizing_at", "cancelled_at", *FILES}
    check_order(batch, "in_progress_at", "cancelling_at", "finalizing_at", "cancelled_at")
    assert (batch.status, finished.counts, batch.errors) == ("cancelled", (2, 1, 1), None)
    assert finished.error_codes == {"hangs-1": "batch_cancelled"}


async def test_4_3_a_batch_that_is_cancelled_before_it_starts(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2))
    assert (await it.openai.batches.cancel(batch_id)).status == "cancelling"
    await it.start_worker()
    finished = await it.finished(batch_id)
    batch = finished.batch
    assert (is_set(batch), finished.counts) == ({"cancelling_at", "cancelled_at"}, (0, 0, 0))
    check_order(batch, "cancelling_at", "cancelled_at")
    assert it.engine.counters().received_total == 0


async def test_4_1_result_files_expire_counted_from_their_creation(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=400, match="bad")
    policy: Any = {"anchor": "created_at", "seconds": 7200}
    batch = await it.create(await it.upload([request("ok"), request("bad")]), output_expires_after=policy)
    finished = (await it.finished(batch.id)).batch
    for file_id in (finished.output_file_id, finished.error_file_id):
        assert file_id
        file = await it.openai.files.retrieve(file_id)
        assert file.expires_at == file.created_at + 7200
        assert finished.finalizing_at
        assert file.created_at >= finished.finalizing_at


async def test_6_strict_error_lines_of_a_run(stack: MakeStack) -> None:
    it = await stack(strict_error_lines=True)
    it.script(mode="status", status=400, match="bad")
    finished = await it.run([request("ok"), request("bad")])
    (line,) = finished.errors
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert line["error"] is None
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["message"]


async def test_4_7_a_retry_of_the_stock_client_makes_no_second_batch(stack: MakeStack) -> None:
    """Its first try is started and its answer lost, as by a proxy that gives up."""
    it = await stack()
    file_id = await it.upload(requests(2))
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    lost = await it.http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "0"})
    again = await it.http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "1"})
    assert again.json()["id"] == lost.json()["id"]
    assert (await it.finished(lost.json()["id"])).counts == (2, 2, 0)
    late = await it.http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "2"})
    assert (late.json()["id"], late.json()["status"]) == (lost.json()["id"], "completed")
    assert [batch.id async for batch in it.openai.batches.list()] == [lost.json()["id"]]
    assert it.engine.counters().received == {"r-0": 1, "r-1": 1}
