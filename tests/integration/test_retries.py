"""A retry sends the failed requests of a batch again, and nothing that is answered; its files have all requests."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx2
import pytest

from tests.integration.conftest import MakeStack
from tests.integration.stack import Finished, Stack, request, requests


async def retry(it: Stack, batch_id: str, key: str = "", **body: Any) -> httpx2.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await it.http.post(f"/v1/batches/{batch_id}/retry", json=body or None, headers=headers)


async def retried(it: Stack, batch_id: str, **body: Any) -> Finished:
    answer = await retry(it, batch_id, **body)
    assert answer.status_code == 200, answer.text
    return await it.finished(answer.json()["id"])


async def some_failed(it: Stack, count: int) -> Finished:
    """A batch of which each seventh request is refused."""
    it.script(mode="status", status=400, match="bad")
    lines = [request(f"{'bad' if n % 7 == 0 else 'ok'}-{n:03d}") for n in range(count)]
    return await it.run(lines)


@pytest.mark.parametrize("count", [20, 300], ids=["single", "grouped"])
async def test_failed_requests_alone_are_sent_again(stack: MakeStack, count: int) -> None:
    it = await stack()
    first = await some_failed(it, count)
    bad = first.refused
    assert len(bad) == first.counts[2] > 2
    still = bad[1]
    it.script(mode="status", status=400, match=still)
    answer = (await retry(it, first.batch.id)).json()
    assert answer["metadata"] == {"retry_of": first.batch.id}
    second = await it.finished(answer["id"])
    assert second.counts == (count, count - 1, 1)
    assert (second.batch.status, second.refused) == ("completed", [still])
    names = [f"{'bad' if n % 7 == 0 else 'ok'}-{n:03d}" for n in range(count)]
    assert second.answered == [name for name in names if name != still]
    received = it.engine.counters().received
    assert received == {name: 2 if name in bad else 1 for name in names}
    kept = {line["custom_id"]: line for line in first.output}
    assert [line for line in second.output if line["custom_id"] in kept] == first.output
    # The first one is as it was, but for the link.
    seen = await it.get(first.batch.id)
    assert (seen.model_extra or {})["retried_by"] == second.batch.id
    assert seen.model_copy(update={"retried_by": None}) == first.batch
    listed = {batch.id: (batch.model_extra or {})["retried_by"] async for batch in it.openai.batches.list()}
    assert listed == {second.batch.id: None, first.batch.id: second.batch.id}
    # And again, of what is left.
    it.script()
    third = await retried(it, second.batch.id)
    assert (third.counts, third.answered) == ((count, count, 0), names)
    assert it.engine.counters().received_total == sum(received.values()) + 1
    nothing = await retry(it, third.batch.id)
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (409, "nothing_to_retry")


async def test_requests_of_some_codes_are_retried(stack: MakeStack) -> None:
    it = await stack(strict_error_lines=True)
    it.script(mode="status", status=400, match="r-0")
    first = await it.run(requests(6))
    unknown = await retry(it, first.batch.id, codes=["nonsense"])
    assert unknown.status_code == 400
    assert "It has: " in unknown.json()["error"]["message"]
    code = unknown.json()["error"]["message"].partition("It has: ")[2].partition(" (")[0]
    it.script()
    second = await retried(it, first.batch.id, codes=[code, "nonsense"])
    assert second.counts == (6, 6, 0)
    other = await retry(it, first.batch.id)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "already_retried")
    assert second.batch.id in other.json()["error"]["message"]


async def test_what_was_cancelled_is_retried_beside_what_failed(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="hangs")
    lines = [request(f"{'hangs' if n % 2 else 'ok'}-{n}") for n in range(8)]
    batch_id = await it.submit(lines)
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 4)
    running = await retry(it, batch_id)
    assert (running.status_code, running.headers["x-should-retry"]) == (409, "false")
    await it.openai.batches.cancel(batch_id)
    first = await it.finished(batch_id)
    assert set(first.error_codes.values()) == {"batch_cancelled"}
    # While the retry runs, its counts are of all requests: those taken over are done.
    answer = (await retry(it, batch_id, codes=["batch_cancelled"])).json()
    batch = await it.until(
        answer["id"],
        lambda batch: it.engine.counters().in_flight == 4 and batch.request_counts and batch.request_counts.total,
    )
    counts = batch.request_counts
    assert counts
    assert (counts.total, counts.completed, counts.failed) == (8, 4, 0)
    await it.openai.files.delete(first.batch.input_file_id)
    await it.openai.files.delete(first.batch.output_file_id or "")
    await it.openai.batches.cancel(answer["id"])
    second = await it.finished(answer["id"])
    assert (second.batch.status, second.counts) == ("cancelled", (8, 4, 4))
    assert second.raw_output == first.raw_output
    gone = await retry(it, second.batch.id)
    assert (gone.status_code, gone.json()["error"]["code"]) == (409, "retry_gone")
    assert first.batch.input_file_id in gone.json()["error"]["message"]


async def test_a_repeated_retry_is_one_batch(stack: MakeStack) -> None:
    it = await stack()
    first = await some_failed(it, 8)
    it.script(mode="hang")
    answers = await asyncio.gather(*(retry(it, first.batch.id) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    (batch_id,) = {answer.json()["id"] for answer in answers}
    key = uuid.uuid4().hex
    assert (await retry(it, first.batch.id, key)).json()["id"] == batch_id
    await it.until(batch_id, lambda _: it.engine.counters().in_flight == 2)
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)
    assert (await retry(it, first.batch.id)).json()["id"] == batch_id
    assert it.engine.counters().received_total <= 8 + 2


async def test_a_retry_under_a_key(stack: MakeStack) -> None:
    it = await stack()
    first, other = await some_failed(it, 8), await some_failed(it, 3)
    it.script()
    key = uuid.uuid4().hex
    second = (await retry(it, first.batch.id, key)).json()
    assert (await retry(it, first.batch.id, key)).json()["id"] == second["id"]
    conflict = await retry(it, other.batch.id, key)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert (await it.http.get(f"/v1/batches/{other.batch.id}")).json()["retried_by"] is None
    await it.finished(second["id"])


async def test_a_retry_that_failed_makes_room_for_another(stack: MakeStack) -> None:
    it = await stack()
    first = await some_failed(it, 8)
    await it.stop_worker()
    failed = (await retry(it, first.batch.id)).json()["id"]
    file = it.catalog.get_file("default", first.batch.input_file_id)
    it.catalog.drop_file("default", file)  # after the API has looked
    await it.start_worker()
    batch = (await it.finished(failed)).batch
    assert batch.errors
    assert batch.errors.data
    assert batch.status == "failed"
    assert f"its input file {file.id} was deleted" in (batch.errors.data[0].message or "")
    assert (await retry(it, first.batch.id)).json()["error"]["code"] == "retry_gone"
    validation = await it.finished(await it.submit(["no JSON"]))
    assert (await retry(it, validation.batch.id)).json()["error"]["code"] == "nothing_to_retry"
    assert (await retry(it, "batch_x")).status_code == 404
