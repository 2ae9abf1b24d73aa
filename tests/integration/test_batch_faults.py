"""Engines that refuse, fail, hang or are away: what becomes an error line, what is tried again, what waits.

One answer of a kind: tests/unit/test_inference.py has which answers are of which.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from openai.types import Batch

from activities.upstreams import retry_delay
from tests.integration.conftest import MakeStack
from tests.integration.stack import progress_of, request, requests


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_delay, "ALONE_SECONDS", 0.5)


def in_order(*custom_ids: str) -> list[dict[str, Any]]:
    return [request(custom_id) for custom_id in custom_ids]


async def test_refusals_go_to_the_error_file(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=400, match="bad")
    finished = await it.run(in_order("ok-0", "bad-1", "ok-2", "bad-3", "ok-4"))
    assert finished.batch.status == "completed"
    assert finished.counts == (5, 3, 2)
    assert (finished.answered, finished.refused) == (["ok-0", "ok-2", "ok-4"], ["bad-1", "bad-3"])
    for line in finished.errors:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["response"]["status_code"] == 400
        assert line["response"]["body"]["error"]["message"] == "The fake engine was told to refuse."
        assert line["error"] == {"code": "invalid_request_error", "message": "The fake engine was told to refuse."}
    assert set(it.engine.counters().received.values()) == {1}
    assert finished.batch.usage
    assert finished.batch.usage.total_tokens == 3 * 30


async def test_a_batch_without_one_success_has_no_output_file(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=404)
    finished = await it.run(requests(3))
    assert finished.batch.status == "completed"
    assert finished.counts == (3, 0, 3)
    assert finished.batch.output_file_id is None
    assert len(finished.errors) == 3


async def test_a_failure_is_tried_again(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=500, times_each=1)
    finished = await it.run(requests(6))
    assert finished.counts == (6, 6, 0)
    assert it.engine.counters().received == {f"r-{n}": 2 for n in range(6)}


async def test_poison_becomes_an_error_line(stack: MakeStack) -> None:
    it = await stack(max_attempts=2)
    it.script(mode="status", status=500, match="r-3")
    finished = await it.run(in_order("ok-0", "ok-1", "ok-2", "r-3"))
    assert finished.counts == (4, 3, 1)
    (line,) = finished.errors
    assert line["custom_id"] == "r-3"
    assert line["response"]["status_code"] == 500
    assert line["error"]["code"] == "server_error"
    received = it.engine.counters().received
    assert 2 <= received.pop("r-3") <= 4  # not each failure can be told from an outage
    assert set(received.values()) == {1}  # only what is unfinished is sent again


@pytest.mark.parametrize(
    ("mode", "code"), [("hang", "request_timeout"), ("reset", "connection_error"), ("not_json", "server_error")]
)
async def test_what_got_no_answer_says_so(stack: MakeStack, mode: str, code: str) -> None:
    it = await stack(max_attempts=1, request_timeout=0.3)
    it.script(mode=mode, match="bad")
    finished = await it.run(in_order("ok-0", "bad-1"))
    assert finished.counts == (2, 1, 1)
    (line,) = finished.errors
    assert (line["custom_id"], line["response"], line["error"]["code"]) == ("bad-1", None, code)


@pytest.mark.parametrize(
    ("script", "count"), [({"mode": "hang"}, 20), ({"mode": "status", "status": 503}, 100)], ids=["single", "grouped"]
)
async def test_several_that_are_never_answered_do_not_keep_a_batch_for_ever(
    stack: MakeStack, script: dict[str, Any], count: int
) -> None:
    it = await stack(max_attempts=2, request_timeout=0.5)
    it.script(**script, match="bad")
    bad = {3, 8}
    finished = await it.run([request(f"{'bad' if n in bad else 'ok'}-{n}") for n in range(count)])
    assert finished.counts == (count, count - 2, 2)
    assert sorted(finished.refused) == ["bad-3", "bad-8"]
    received = it.engine.counters().received
    assert all(received[name] == 1 for name in received if name.startswith("ok"))


@pytest.mark.parametrize("count", [50, 100], ids=["single", "grouped"])
async def test_many_that_hang_while_the_others_are_answered_do_not_keep_a_batch_for_ever(
    stack: MakeStack, count: int
) -> None:
    it = await stack(max_attempts=2, request_timeout=1.5, max_in_flight=16)
    it.script(mode="hang", match="bad")
    finished = await it.run([request(f"{'bad' if n < 7 else 'ok'}-{n}") for n in range(count)])
    assert finished.counts == (count, count - 7, 7)
    assert set(finished.error_codes.values()) == {"request_timeout"}
    received = it.engine.counters().received
    assert {name: times for name, times in received.items() if times != 1} == {f"bad-{n}": 2 for n in range(7)}


async def test_overload_means_later(stack: MakeStack) -> None:
    it = await stack(max_attempts=1)
    it.script(mode="status", status=503, retry_after=2)
    batch_id = await it.submit(requests(3))
    waiting = await it.until(batch_id, lambda batch: progress_of(batch).get("next_attempt_at"))
    assert waiting.status == "in_progress"
    progress = progress_of(waiting)
    assert "is overloaded (HTTP 503" in progress["waiting_reason"]
    assert abs(progress["next_attempt_at"] - time.time() - 1.5) < 2.5
    it.script()
    finished = await it.finished(batch_id)
    assert finished.counts == (3, 3, 0)  # however often, it does not count as a failure


async def test_a_wrong_key_waits_and_says_so(stack: MakeStack) -> None:
    it = await stack(max_attempts=1)
    it.script(mode="status", status=401)
    batch_id = await it.submit(requests(2))
    waiting = await it.until(batch_id, lambda batch: progress_of(batch).get("waiting_reason"))
    assert "HTTP 401 Unauthorized" in progress_of(waiting)["waiting_reason"]
    it.script()
    assert (await it.finished(batch_id)).counts == (2, 2, 0)


async def test_an_engine_that_is_away_is_waited_for(stack: MakeStack) -> None:
    it = await stack(max_attempts=1)
    await it.engine.close()
    batch_id = await it.submit(requests(5))

    def says_why(batch: Batch) -> bool:
        return "refuses connections" in (progress_of(batch).get("waiting_reason") or "")

    waiting = await it.until(batch_id, says_why)
    assert waiting.status == "in_progress"
    await it.engine.start(port=it.engine_port)
    assert (await it.finished(batch_id)).counts == (5, 5, 0)


async def test_an_engine_that_goes_mid_run_is_waited_for(stack: MakeStack) -> None:
    it = await stack(max_attempts=2, latency=0.02)
    batch_id = await it.submit(requests(1000))
    await it.until(batch_id, lambda _: it.engine.counters().answered_total > 200)
    it.script(mode="refuse", seconds=0.5)
    finished = await it.finished(batch_id)
    assert finished.counts == (1000, 1000, 0)
    assert finished.answered == [f"r-{n}" for n in range(1000)]
    assert set(it.engine.counters().answered.values()) == {1}


# Whose fault it is


@pytest.mark.parametrize("status", [500, 503])
async def test_one_request_that_is_always_refused_is_an_error_line_and_slows_nobody(
    stack: MakeStack, status: int
) -> None:
    it = await stack(max_attempts=3, latency=0.05)
    it.script(mode="status", status=status, match="bad", retry_after=600)
    finished = await it.run([*requests(60), request("bad"), *requests(60, prefix="s")])
    assert finished.counts == (121, 120, 1)
    assert finished.errors[0]["response"]["status_code"] == status
    received = it.engine.counters().received
    assert 3 <= received.pop("bad") <= 5  # not each failure can be told from an outage
    assert set(received.values()) == {1}


@pytest.mark.parametrize(
    "outage",
    [{"mode": "status", "status": 500}, {"mode": "status", "status": 503}, {"mode": "page", "status": 404}],
    ids=str,
)
async def test_an_outage_of_all_is_waited_for_and_makes_no_error_line(stack: MakeStack, outage: dict[str, Any]) -> None:
    # Two attempts, for the first refusal may overtake an answer and then looks like its request's own fault.
    it = await stack(max_attempts=2, latency=0.02, max_in_flight=64)
    batch_id = await it.submit(requests(600))
    await it.until(batch_id, lambda _: it.engine.counters().answered_total > 100)
    it.script(**outage)
    said = await it.until(batch_id, lambda batch: progress_of(batch).get("waiting_reason"))
    assert f"HTTP {outage['status']}" in progress_of(said)["waiting_reason"]
    await asyncio.sleep(1.5)
    assert it.engine.counters().refused_total <= 2 * 64 + 10  # what was in flight, as much again, and probes
    it.script()
    assert (await it.finished(batch_id)).counts == (600, 600, 0)


async def test_a_model_that_refuses_makes_no_other_wait(stack: MakeStack) -> None:
    it = await stack(latency=0.02, unknown_model="line")
    it.script(mode="status", status=503, match="bad", retry_after=600)
    refused = await it.submit([request(f"bad-{n}", model="other") for n in range(20)])
    await it.until(refused, lambda batch: progress_of(batch).get("waiting_reason"))
    assert (await it.run(requests(100))).counts == (100, 100, 0)
    await it.openai.batches.cancel(refused)
    await it.finished(refused)
    assert (await it.run(requests(100))).counts == (100, 100, 0)


async def test_what_an_upstream_says_of_its_secrets_is_masked(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="echo_key", status=400, match="bad")
    finished = await it.run(in_order("ok-0", "bad-1"))
    assert b"upstream-secret-key" not in finished.raw_errors
    assert "Bearer ***" in finished.errors[0]["error"]["message"]
