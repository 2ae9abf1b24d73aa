"""The activity that runs a shard, with a scripted engine and a store in a folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import catalog, run_requests, shard_heartbeat
from activities.batch_plan import BatchPlan
from activities.inference import Answer, Verdict
from activities.upstreams import Upstream
from tests.fakes.shard_worker import ShardWorker
from tests.fakes.worker import (
    BATCH,
    TENANT,
    refusal,
    reply,
    request_line,
    until,
)
from workflows.types import Shard, Usage

TIMEOUT = Answer(Verdict.RETRY, code="request_timeout", message="The inference server gave no answer.", reason="late")
REFUSED = Answer(Verdict.UNREACHABLE, code="connection_error", message="…", reason="connection refused")


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[ShardWorker]:
    worker = ShardWorker(tmp_path, 10)
    yield worker
    worker.settled()


@pytest.fixture(autouse=True)
def fast_store_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_requests, "STORE_RETRY_SECONDS", 0.01)


# Answers


async def test_all_succeed(worker: ShardWorker) -> None:
    result = await worker.run()
    assert (result.completed, result.failed) == (10, 0)
    assert result.usage == Usage(input_tokens=sum(range(11)), output_tokens=10)
    lines = worker.lines(result)
    assert [(line, kind) for line, kind, _ in lines] == [(n, "output") for n in range(1, 11)]
    assert [content["custom_id"] for _, _, content in lines] == [f"r{n}" for n in range(1, 11)]
    assert [content["response"]["body"]["n"] for _, _, content in lines] == list(range(1, 11))
    assert worker.engine.sent == list(range(1, 11))
    assert worker.engine.most_in_flight == 8
    assert list(worker.store.list(catalog.parts_prefix(TENANT, BATCH, 0))) == []


async def test_only_the_lines_of_the_shard_are_sent(worker: ShardWorker) -> None:
    skipped = len(request_line(1)) * 3
    shard = Shard(skipped, len(request_line(4)) * 2, 4, 2)
    result = await worker.run(shard=shard, index=1)
    assert (result.completed, sorted(worker.engine.sent)) == (2, [4, 5])
    assert [line for line, _, _ in worker.lines(result, index=1)] == [4, 5]


async def test_a_shard_that_is_finished_is_sent_no_more(worker: ShardWorker) -> None:
    first = await worker.run()
    worker.engine.sent.clear()
    assert await worker.run(attempt=2) == first
    assert worker.engine.sent == []


async def test_refusals_are_final(worker: ShardWorker) -> None:
    worker.engine.fail([2], refusal(400, "too long", x_request_id="up-1"))
    result = await worker.run()
    assert (result.completed, result.failed) == (9, 1)
    line, kind, content = worker.lines(result)[1]
    assert (line, kind, content["custom_id"]) == (2, "error", "r2")
    assert content["response"]["status_code"] == 400
    assert content["response"]["request_id"] == "up-1"
    assert content["response"]["body"]["error"]["message"] == "too long"
    assert content["error"] == {"code": "t", "message": "too long"}


async def test_only_what_failed_is_sent_again(worker: ShardWorker) -> None:
    worker.engine.fail([3, 7], refusal(500))
    error = await worker.run_to_retry()
    assert error.message == "2 of 10 requests to retry: HTTP 500 Internal Server Error"
    assert (error.type, error.non_retryable) == ("RequestsToRetry", False)
    assert error.category is ApplicationErrorCategory.BENIGN
    assert (len(worker.committed().records), worker.committed().tried) == (8, {3: 1, 7: 1})

    worker.engine.sent.clear()
    result = await worker.run(attempt=2)
    assert (result.completed, result.failed) == (10, 0)
    assert worker.engine.sent == [3, 7]
    assert [line for line, _, _ in worker.lines(result)] == list(range(1, 11))


async def test_too_many_failures_make_an_error_line_with_the_last_answer(worker: ShardWorker) -> None:
    worker.engine.fail([3], *(refusal(500, f"crash {n}") for n in (1, 2, 3)))
    for attempt in (1, 2):
        await worker.run_to_retry(attempt)
    result = await worker.run(attempt=3)
    assert (result.completed, result.failed) == (9, 1)
    _, kind, content = worker.lines(result)[2]
    assert (kind, content["response"]["status_code"]) == ("error", 500)
    assert content["error"]["message"] == "crash 3"


@pytest.mark.parametrize("last", [TIMEOUT, reply(200, b"<html>")], ids=["timeout", "not JSON"])
async def test_failures_without_an_answer_make_a_line_without_a_response(worker: ShardWorker, last: Answer) -> None:
    worker.engine.fail([3], refusal(500), refusal(504), last)
    for attempt in (1, 2):
        await worker.run_to_retry(attempt)
    result = await worker.run(attempt=3)
    _, kind, content = worker.lines(result)[2]
    assert (kind, content["response"]) == ("error", None)
    assert content["error"] == {"code": last.code, "message": last.message}


@pytest.mark.parametrize("answer", [refusal(429), refusal(503), refusal(401), REFUSED])
async def test_an_upstream_that_is_not_available_is_waited_for_uncounted(worker: ShardWorker, answer: Answer) -> None:
    for attempt in range(1, 8):  # more often than max_attempts
        worker.engine.fail([3], answer)
        await worker.run_to_retry(attempt)
        assert worker.committed().tried == {}
        worker.pass_pause()
    result = await worker.run(attempt=8)
    assert (result.completed, result.failed) == (10, 0)


async def test_retry_after_is_waited_for_and_nothing_of_the_answer_is_told(worker: ShardWorker) -> None:
    worker.engine.fail(range(1, 11), refusal(503, "secret words", retry_after="40"))
    error = await worker.run_to_retry()
    assert error.next_retry_delay is not None
    assert 39 < error.next_retry_delay.total_seconds() < 45
    assert error.message == "10 of 10 requests to retry: HTTP 503 Service Unavailable"
    assert not error.details
    assert len(worker.engine.sent) <= 8  # what was in flight before the first answer

    later = await worker.run_to_retry(attempt=2)
    assert worker.engine.sent == []  # sends nothing before the pause is over
    assert later.message == error.message
    assert later.next_retry_delay is not None
    assert later.next_retry_delay.total_seconds() > 35


async def test_the_wait_before_a_failed_request_is_tried_again_grows_and_is_bounded(worker: ShardWorker) -> None:
    worker.engine.fail([3], *[refusal(500)] * 30)
    waits: list[float] = []
    for attempt in range(1, 12):
        with pytest.raises(ApplicationError) as caught:
            await worker.run(attempt, max_attempts=99)
        assert caught.value.next_retry_delay is not None
        waits.append(caught.value.next_retry_delay.total_seconds())
    assert waits == sorted(waits[:6]) + waits[6:]
    assert 1 <= waits[0] <= 1.1
    assert all(30 <= wait <= 33 for wait in waits[6:])


async def test_a_reset_workflow_counts_attempts_anew_and_loses_nothing(worker: ShardWorker) -> None:
    for held in ([3, 4, 5], [3, 4], [3]):
        worker.engine.fail(held, *[refusal(503)] * 8)
        await worker.run_to_retry(attempt=1)
        worker.pass_pause()
        worker.engine.script.clear()
        assert sorted(worker.committed().records) == [n for n in range(1, 11) if n not in held]
    assert (await worker.run(attempt=1)).completed == 10


# Progress


async def test_heartbeats_tell_what_is_committed_and_in_flight(
    worker: ShardWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_heartbeat, "BEAT_SECONDS", 0.01)
    worker.engine.held = {4, 9}
    worker.engine.fail([2], refusal(400))
    running, _ = worker.start()
    await until(lambda: (7, 1, 2) in [(beat.completed, beat.failed, beat.in_flight) for beat in worker.beats])
    assert all(beat.completed + beat.failed + beat.in_flight <= 10 for beat in worker.beats)
    worker.engine.release()
    await running


async def test_answers_are_committed_while_others_are_in_flight(worker: ShardWorker) -> None:
    worker.engine.held = {4}
    running, _ = worker.start()
    await until(lambda: len(worker.committed().records) == 9)
    assert not running.done()
    worker.engine.release()
    assert (await running).completed == 10


async def test_answers_that_arrive_together_share_a_part(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 50, interval=0.05)
    worker.engine.held = {50}
    running, _ = worker.start()
    await until(lambda: len(worker.committed().records) == 49)
    assert len(worker.committed().parts) < 10
    worker.engine.release()
    await running


async def test_a_bad_gateway_counts_only_where_the_engine_answers_others(tmp_path: Path) -> None:
    # A proxy in front of an engine that restarts: nothing is answered, and no request is to blame.
    worker = ShardWorker(tmp_path, 2)
    worker.engine.fail([1, 2], *[refusal(502)] * 9)
    for attempt in (1, 2, 3, 4):
        await worker.run_to_retry(attempt)
        worker.pass_pause()
    assert not worker.committed().tried
    worker.engine.script.clear()
    assert (await worker.run(attempt=5)).completed == 2


# Upstreams


async def test_requests_go_to_the_replicas_in_turn(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 8, in_flight=4, replicas=2)
    worker.engine.held = set(range(1, 9))
    running, _ = worker.start()
    await until(lambda: worker.engine.in_flight == 8)
    assert sorted(worker.engine.replicas) == [0] * 4 + [1] * 4
    worker.engine.release()
    assert (await running).completed == 8
    worker.settled()


async def test_the_reason_to_wait_names_an_upstream_that_has_a_name(worker: ShardWorker) -> None:
    worker.engine.upstream = Upstream(name="gpu-1", urls=("http://10.0.0.1/v1",))
    worker.engine.fail(range(1, 11), REFUSED)
    error = await worker.run_to_retry()
    assert error.message == "10 of 10 requests to retry: upstream gpu-1: connection refused"
    later = await worker.run_to_retry(attempt=2)
    assert later.message == error.message


async def test_a_shard_of_a_mixed_batch_sends_its_own_requests_only(worker: ShardWorker) -> None:
    lines = [request_line(n, model="even" if n % 2 == 0 else "odd") for n in range(1, 11)]
    lines.append(request_line(11, model=...))
    worker.store.put(catalog.input_key(TENANT, BATCH), b"".join(lines))
    plan = BatchPlan([], {"even": 1, "odd": 0}, rest=1)
    worker.store.put(catalog.plan_key(TENANT, BATCH, "p"), plan.dump())
    shard = Shard(0, len(b"".join(lines)), 1, 6, 1)
    worker.engine.fail([4], refusal(503))
    with pytest.raises(ApplicationError, match="1 of 6 requests to retry"):
        await worker.run(shard=shard, plan="p")
    worker.pass_pause()
    result = await worker.run(attempt=2, shard=shard, plan="p")
    assert sorted(worker.engine.sent) == [2, 4, 4, 6, 8, 10, 11]
    assert [line for line, _, _ in worker.lines(result)] == [2, 4, 6, 8, 10, 11]
