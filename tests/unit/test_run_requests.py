"""The activity that runs a shard, with a scripted engine and a store in a folder."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment

from activities import catalog, run_requests
from activities.inference import Answer, Verdict
from activities.limiter import Limiter, RoomForRequests
from activities.results import Committed, RecordReader, look_up
from activities.run_requests import RunRequests
from tests.fakes.worker import (
    BATCH,
    CHAT,
    TENANT,
    FakeEngine,
    ShakyStore,
    activity_environment,
    refusal,
    reply,
    request_line,
    until,
)
from workflows.types import RunRequestsInput, Shard, ShardResult, Usage

TIMEOUT = Answer(Verdict.RETRY, code="request_timeout", message="The inference server gave no answer.", reason="late")
REFUSED = Answer(Verdict.UNREACHABLE, code="connection_error", message="…", reason="connection refused")


class Worker:
    """One worker process with one shard of ``requests`` lines."""

    def __init__(self, folder: Path, requests: int, *, in_flight: int = 8, interval: float = 0.0) -> None:
        self.store = ShakyStore(str(folder))
        self.engine = FakeEngine()
        self.limiter = Limiter(in_flight)
        self.room = RoomForRequests(self.limiter)
        self.activity = RunRequests(self.store, self.engine.client, self.limiter, self.room, interval)
        self.beats: list[Any] = []
        content = b"".join(request_line(number) for number in range(1, requests + 1))
        self.store.put(catalog.input_key(TENANT, BATCH), content)
        self.shard = Shard(0, len(content), 1, requests)

    def start(self, attempt: int = 1, **changes: Any) -> tuple[asyncio.Task[ShardResult], ActivityEnvironment]:
        environment, self.beats = activity_environment(attempt)
        values: dict[str, Any] = {"index": 0, "shard": self.shard, "max_attempts": 3}
        task = RunRequestsInput(batch_id=BATCH, tenant=TENANT, endpoint=CHAT, **(values | changes))
        running = asyncio.ensure_future(environment.run(self.activity.run_requests, task))
        return running, environment

    async def run(self, attempt: int = 1, **changes: Any) -> ShardResult:
        return await self.start(attempt, **changes)[0]

    async def run_to_retry(self, attempt: int = 1) -> ApplicationError:
        self.engine.sent.clear()
        with pytest.raises(ApplicationError) as caught:
            await self.run(attempt)
        self.settled()
        return caught.value

    def settled(self) -> None:
        """Nothing of an attempt that has ended is left in the worker."""
        assert (self.limiter.in_flight, self.limiter.waiting, self.engine.in_flight) == (0, 0, 0)

    def lines(self, result: ShardResult, index: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
        """Line number, kind and content of each line of the object that counts."""
        reader = RecordReader(self.store.stream(catalog.result_key(TENANT, BATCH, index, result.attempt)))
        reader.shard_head()
        return [(r.line, r.kind, json.loads(b"".join(reader.line()))) for r in reader.records()]

    def committed(self) -> Committed:
        found = look_up(self.store, TENANT, BATCH, 0)
        assert isinstance(found, Committed)
        return found


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, 10)
    yield worker
    worker.settled()


@pytest.fixture(autouse=True)
def fast_store_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_requests, "STORE_RETRY_SECONDS", 0.01)


# Answers


async def test_all_succeed(worker: Worker) -> None:
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


async def test_only_the_lines_of_the_shard_are_sent(worker: Worker) -> None:
    skipped = len(request_line(1)) * 3
    shard = Shard(skipped, len(request_line(4)) * 2, 4, 2)
    result = await worker.run(shard=shard, index=1)
    assert (result.completed, sorted(worker.engine.sent)) == (2, [4, 5])
    assert [line for line, _, _ in worker.lines(result, index=1)] == [4, 5]


async def test_a_shard_that_is_finished_is_sent_no_more(worker: Worker) -> None:
    first = await worker.run()
    worker.engine.sent.clear()
    assert await worker.run(attempt=2) == first
    assert worker.engine.sent == []


async def test_refusals_are_final(worker: Worker) -> None:
    worker.engine.fail([2], refusal(400, "too long", x_request_id="up-1"))
    result = await worker.run()
    assert (result.completed, result.failed) == (9, 1)
    line, kind, content = worker.lines(result)[1]
    assert (line, kind, content["custom_id"]) == (2, "error", "r2")
    assert content["response"]["status_code"] == 400
    assert content["response"]["request_id"] == "up-1"
    assert content["response"]["body"]["error"]["message"] == "too long"
    assert content["error"] == {"code": "t", "message": "too long"}


async def test_only_what_failed_is_sent_again(worker: Worker) -> None:
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


async def test_too_many_failures_make_an_error_line_with_the_last_answer(worker: Worker) -> None:
    worker.engine.fail([3], *(refusal(500, f"crash {n}") for n in (1, 2, 3)))
    for attempt in (1, 2):
        await worker.run_to_retry(attempt)
    result = await worker.run(attempt=3)
    assert (result.completed, result.failed) == (9, 1)
    _, kind, content = worker.lines(result)[2]
    assert (kind, content["response"]["status_code"]) == ("error", 500)
    assert content["error"]["message"] == "crash 3"


@pytest.mark.parametrize("last", [TIMEOUT, reply(200, b"<html>")], ids=["timeout", "not JSON"])
async def test_failures_without_an_answer_make_a_line_without_a_response(worker: Worker, last: Answer) -> None:
    worker.engine.fail([3], refusal(500), refusal(502), last)
    for attempt in (1, 2):
        await worker.run_to_retry(attempt)
    result = await worker.run(attempt=3)
    _, kind, content = worker.lines(result)[2]
    assert (kind, content["response"]) == ("error", None)
    assert content["error"] == {"code": last.code, "message": last.message}


@pytest.mark.parametrize("answer", [refusal(429), refusal(503), refusal(401), REFUSED])
async def test_an_upstream_that_is_not_available_is_waited_for_uncounted(worker: Worker, answer: Answer) -> None:
    for attempt in range(1, 8):  # more often than max_attempts
        worker.engine.fail([3], answer)
        await worker.run_to_retry(attempt)
        assert worker.committed().tried == {}
        worker.limiter._paused_until = 0  # pyright: ignore[reportPrivateUsage] - the pause passes
    result = await worker.run(attempt=8)
    assert (result.completed, result.failed) == (10, 0)


async def test_retry_after_is_waited_for_and_nothing_of_the_answer_is_told(worker: Worker) -> None:
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


async def test_the_wait_before_a_failed_request_is_tried_again_grows_and_is_bounded(worker: Worker) -> None:
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


async def test_a_reset_workflow_counts_attempts_anew_and_loses_nothing(worker: Worker) -> None:
    for held in ([3, 4, 5], [3, 4], [3]):
        worker.engine.fail(held, *[refusal(503)] * 8)
        await worker.run_to_retry(attempt=1)
        worker.limiter._paused_until = 0  # pyright: ignore[reportPrivateUsage] - the pause passes
        worker.engine.script.clear()
        assert sorted(worker.committed().records) == [n for n in range(1, 11) if n not in held]
    assert (await worker.run(attempt=1)).completed == 10


# Progress


async def test_heartbeats_tell_what_is_committed_and_in_flight(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_requests, "HEARTBEAT_SECONDS", 0.01)
    worker.engine.held = {4, 9}
    worker.engine.fail([2], refusal(400))
    running, _ = worker.start()
    await until(lambda: [7, 1, 2] in [beat[:3] for beat in worker.beats])
    assert all(beat[0] + beat[1] + beat[2] <= 10 for beat in worker.beats)
    worker.engine.release()
    await running


async def test_answers_are_committed_while_others_are_in_flight(worker: Worker) -> None:
    worker.engine.held = {4}
    running, _ = worker.start()
    await until(lambda: len(worker.committed().records) == 9)
    assert not running.done()
    worker.engine.release()
    assert (await running).completed == 10


async def test_answers_that_arrive_together_share_a_part(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 50, interval=0.05)
    worker.engine.held = {50}
    running, _ = worker.start()
    await until(lambda: len(worker.committed().records) == 49)
    assert len(worker.committed().parts) < 10
    worker.engine.release()
    await running


# Cancel and shutdown


async def test_cancel_drops_what_is_in_flight_and_commits_what_is_answered(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 10, in_flight=4, interval=3600)  # nothing is committed before the cancel
    worker.engine.held = {2, 4, 5, 6}
    running, environment = worker.start()
    await until(lambda: worker.engine.sent == [1, 2, 3, 4, 5, 6])
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(worker.committed().records) == [1, 3]
    assert sorted(worker.engine.cancelled) == [2, 4, 5, 6]
    assert worker.engine.sent == [1, 2, 3, 4, 5, 6]
    assert worker.beats[-1][:3] == [2, 0, 0]
    worker.settled()


async def test_a_worker_that_stops_hands_the_shard_back(worker: Worker) -> None:
    worker.engine.held = {4}
    running, environment = worker.start()
    await until(lambda: len(worker.committed().records) == 9)
    worker.limiter.drain()
    environment.cancel(ActivityCancellationDetails(worker_shutdown=True))
    with pytest.raises(ApplicationError) as caught:
        await running
    assert caught.value.message == "1 of 10 requests to retry: the worker stopped"
    assert caught.value.next_retry_delay is not None
    assert 0 < caught.value.next_retry_delay.total_seconds() < 0.1


async def test_a_draining_worker_lets_requests_in_flight_end(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 10, in_flight=4)
    worker.engine.held = {1, 2, 3, 4}
    running, _ = worker.start()
    await until(lambda: worker.engine.in_flight == 4)
    worker.limiter.drain()
    worker.engine.release()
    with pytest.raises(ApplicationError, match="6 of 10 requests to retry: the worker is stopping"):
        await running
    assert worker.engine.sent == [1, 2, 3, 4]
    assert sorted(worker.committed().records) == [1, 2, 3, 4]


async def test_cancelling_many_shards_at_once_leaves_no_request_counted(tmp_path: Path) -> None:
    # What one shard drops makes room, and another starts a request in the very moment in which it is cancelled too.
    worker = Worker(tmp_path, 60, in_flight=3)
    worker.engine.held = set(range(1, 61))
    running: list[tuple[asyncio.Task[ShardResult], ActivityEnvironment]] = []
    offset = 0
    for number in range(1, 61, 3):
        length = sum(len(request_line(n)) for n in range(number, number + 3))
        running.append(worker.start(shard=Shard(offset, length, number, 3), index=number))
        offset += length
    await until(lambda: worker.limiter.in_flight == 3 and worker.limiter.waiting == 57)
    for _, environment in running:
        environment.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*(task for task, _ in running), return_exceptions=True)
    worker.settled()


# When the store is away


async def test_answers_outlive_the_store_being_away_and_nothing_more_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(tmp_path, 10, in_flight=2)
    worker.engine.held = {5, 6}
    worker.store.down = True
    running, _ = worker.start()
    with caplog.at_level(logging.WARNING):
        await until(lambda: worker.store.refused > 2)
    sent = list(worker.engine.sent)
    assert sent == [1, 2, 3, 4, 5, 6]
    assert worker.limiter.held_back
    worker.engine.release()
    await until(lambda: worker.engine.in_flight == 0)
    refused = worker.store.refused
    await until(lambda: worker.store.refused > refused + 2)
    assert worker.engine.sent == sent

    worker.store.down = False
    with pytest.raises(ApplicationError, match="requests to retry: the store failed at") as caught:
        await running
    assert str(tmp_path) not in caught.value.message
    assert sorted(worker.committed().records) == sent
    assert not worker.limiter.held_back
    assert sum("answers wait" in record.message for record in caplog.records) == 1

    assert (await worker.run(attempt=2)).completed == 10
    assert sorted(worker.engine.sent) == list(range(1, 11))
    worker.settled()


async def test_a_finish_waits_for_the_store(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 4, interval=3600)
    worker.engine.held = {4}
    running, _ = worker.start()
    await until(lambda: worker.engine.in_flight == 1)
    worker.store.down = True
    worker.engine.release()
    await until(lambda: worker.store.refused > 2)
    worker.store.down = False
    assert (await running).completed == 4
    assert not worker.limiter.held_back


async def test_cancel_while_the_store_is_away_frees_the_worker(worker: Worker) -> None:
    worker.store.down = True
    running, environment = worker.start()
    await until(lambda: worker.store.refused > 2)
    environment.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.done()
    assert not worker.limiter.held_back


async def test_parts_that_vanish_without_a_result_do_not_stop_the_worker(worker: Worker) -> None:
    # Somebody cleaned up behind a zombie. Waiting would not bring them back, and would block every other batch.
    worker.engine.fail([3], refusal(500))
    await worker.run_to_retry()
    worker.engine.held = {3}
    running, _ = worker.start(attempt=2)
    await until(lambda: worker.engine.in_flight == 1)
    worker.store.delete_prefix(catalog.parts_prefix(TENANT, BATCH, 0))
    worker.engine.release()
    await asyncio.wait([running], timeout=5)
    assert running.done()
    assert isinstance(running.exception(), Exception)
    assert not worker.limiter.held_back


# Faults of ours


async def test_a_bug_in_sending_ends_the_attempt_with_it(worker: Worker) -> None:
    worker.engine.fail([3], ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        await worker.run()
    assert 3 not in worker.committed().records
    assert 1 in worker.committed().records
    assert (await worker.run(attempt=2)).completed == 10
