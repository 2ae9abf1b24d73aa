"""The activity that runs a shard, when it is cancelled or paused, when its store is away, and when it has a bug."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities import heartbeats
from activities.records import shard_keys
from activities.results import commits
from activities.results.shard_log import Tries
from tests.fakes.shard_worker import SHARD, FakeTemporal, ShardWorker
from tests.fakes.worker import refusal, request_line, until
from workflows.types import Shard, ShardResult
from workflows.waits import EndsBy, WaitKind, store_wait


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[ShardWorker]:
    worker = ShardWorker(tmp_path, 10)
    yield worker
    worker.settled()


@pytest.fixture(autouse=True)
def fast_store_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "STORE_RETRY_SECONDS", 0.01)


# Cancel and shutdown


async def test_cancel_drops_what_is_in_flight_and_commits_what_is_answered(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 10, in_flight=4, interval=3600)  # nothing is committed before the cancel
    worker.engine.held = {2, 4, 5, 6}
    running, environment = worker.start()
    await until(lambda: worker.engine.sent == [1, 2, 3, 4, 5, 6])
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(worker.committed().records) == [1, 3]
    assert sorted(worker.engine.cancelled) == [2, 4, 5, 6]
    assert worker.engine.sent == [1, 2, 3, 4, 5, 6]
    last = worker.beats[-1]
    assert (last.completed, last.failed, last.in_flight) == (2, 0, 0)
    worker.settled()


async def test_a_worker_that_stops_hands_the_shard_back(worker: ShardWorker) -> None:
    worker.engine.held = {4}
    running, environment = worker.start()
    await until(lambda: len(worker.committed().records) == 9)
    worker.limiter.drain(0)
    environment.cancel(ActivityCancellationDetails(worker_shutdown=True))
    with pytest.raises(ApplicationError) as caught:
        await running
    assert caught.value.message == "1 of 10 requests to retry: the worker stopped"
    assert caught.value.next_retry_delay is not None
    assert 0 < caught.value.next_retry_delay.total_seconds() < 0.1


async def test_a_draining_worker_lets_requests_in_flight_end(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 10, in_flight=4)
    worker.engine.held = {1, 2, 3, 4}
    running, _ = worker.start()
    await until(lambda: worker.engine.in_flight == 4)
    worker.limiter.drain(0)
    worker.engine.release()
    with pytest.raises(ApplicationError, match="6 of 10 requests to retry: the worker is stopping"):
        await running
    assert worker.engine.sent == [1, 2, 3, 4]
    assert sorted(worker.committed().records) == [1, 2, 3, 4]


async def test_a_shard_that_comes_to_a_draining_worker_is_handed_back_at_once(worker: ShardWorker) -> None:
    worker.limiter.drain(0)
    running, _ = worker.start()
    with pytest.raises(ApplicationError, match="10 of 10 requests to retry: the worker is stopping") as caught:
        await running
    assert caught.value.next_retry_delay is not None
    assert 0 < caught.value.next_retry_delay.total_seconds() < 0.1
    assert worker.engine.sent == []


async def test_cancelling_many_shards_at_once_leaves_no_request_counted(tmp_path: Path) -> None:
    # What one shard drops makes room, and another starts a request in the very moment in which it is cancelled too.
    worker = ShardWorker(tmp_path, 60, in_flight=3)
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


async def test_the_first_shard_that_learns_of_a_cancel_notifies_the_others(tmp_path: Path) -> None:
    """They would hear of it one after the other, and send what each leaves free."""
    worker = ShardWorker(tmp_path, 8, in_flight=4)
    worker.engine.held = set(range(1, 9))
    first_bytes = sum(len(request_line(number)) for number in range(1, 5))
    others_bytes = sum(len(request_line(number)) for number in range(5, 9))
    first, environment = worker.start(shard=Shard(0, first_bytes, 1, 4))
    await until(lambda: worker.engine.in_flight == 4)
    other, others_environment = worker.start(shard=Shard(first_bytes, others_bytes, 5, 4), index=1)
    await until(lambda: worker.limiter.waiting == 4)
    others_environment.cancel(ActivityCancellationDetails(cancel_requested=True))
    await until(lambda: worker.engine.in_flight == 0)
    assert worker.engine.sent == [1, 2, 3, 4]
    assert not first.done()  # until the SDK has heard of it too
    environment.cancel(ActivityCancellationDetails(cancel_requested=True))
    for running in (first, other):
        with pytest.raises(asyncio.CancelledError):
            await running
    worker.settled()


async def test_a_worker_that_was_suspended_sends_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.05)
    worker = ShardWorker(tmp_path, 10, in_flight=4)
    worker.engine.held = {1, 2, 3, 4}
    running, environment = worker.start()
    environment.info = dataclasses.replace(environment.info, heartbeat_timeout=timedelta(seconds=0.4))
    await until(lambda: worker.engine.in_flight == 4 and len(worker.beats) > 0)
    threading.Event().wait(0.5)  # the shard is taken for lost, and runs elsewhere
    await asyncio.sleep(0)
    worker.engine.release()
    with pytest.raises(ApplicationError, match="6 of 10 requests to retry: the worker was suspended"):
        await running
    assert worker.engine.sent == [1, 2, 3, 4]
    assert sorted(worker.committed().records) == [1, 2, 3, 4]
    worker.settled()


async def test_a_worker_that_was_suspended_in_the_middle_of_a_step_sends_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had ready to do then it does first, before any timer."""
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.2)
    worker = ShardWorker(tmp_path, 10, in_flight=4)
    worker.engine.held = {1, 2, 3, 4}
    running, environment = worker.start()
    environment.info = dataclasses.replace(environment.info, heartbeat_timeout=timedelta(seconds=0.1))
    await until(lambda: worker.engine.in_flight == 4)
    worker.engine.release()
    threading.Event().wait(0.3)
    with pytest.raises(ApplicationError, match="6 of 10 requests to retry: the worker was suspended"):
        await running
    assert worker.engine.sent == [1, 2, 3, 4]
    worker.settled()


@pytest.mark.parametrize("status", [RPCStatusCode.NOT_FOUND, RPCStatusCode.UNAVAILABLE, None], ids=str)
async def test_an_attempt_that_temporal_gave_up_before_it_began_sends_nothing(
    worker: ShardWorker, status: RPCStatusCode | None
) -> None:
    """Its worker was suspended after it had taken the shard: that runs elsewhere, so Temporal is asked first."""
    temporal = FakeTemporal(RPCError("no", status, b"") if status else None)
    running, environment = worker.start(temporal=cast(Client, temporal))
    taken = datetime.now(UTC) - timedelta(seconds=15)
    environment.info = dataclasses.replace(
        environment.info, heartbeat_timeout=timedelta(seconds=10), started_time=taken
    )
    if status is RPCStatusCode.NOT_FOUND:
        with pytest.raises(ApplicationError, match="10 of 10 requests to retry: the worker was suspended"):
            await running
    else:
        assert (await running).completed == 10
    assert len(worker.engine.sent) == (0 if status is RPCStatusCode.NOT_FOUND else 10)
    assert len(temporal.asked) == 1


# Pause

PAUSED = ActivityCancellationDetails(paused=True)


async def test_a_pause_lets_what_is_in_flight_end_and_sends_nothing_more(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 10, in_flight=4, interval=3600)
    worker.engine.held = {1, 2, 3, 4}
    running, environment = worker.start()
    await until(lambda: worker.engine.in_flight == 4)
    environment.cancel(PAUSED)
    await asyncio.sleep(0)
    worker.engine.release()
    with pytest.raises(ApplicationError, match="6 of 10 requests to retry: the batch is paused"):
        await running
    assert (sorted(worker.committed().records), worker.engine.cancelled) == ([1, 2, 3, 4], [])
    worker.settled()


async def test_a_pause_during_the_last_commit_loses_nothing(worker: ShardWorker) -> None:
    worker.engine.fail([3], refusal(500))
    reached, go = threading.Event(), threading.Event()

    def hold(key: str) -> None:
        reached.set()
        assert go.wait(20)

    worker.store.on_write = hold
    running, environment = worker.start()
    await until(lambda: reached.is_set() and worker.engine.in_flight == 0 and len(worker.engine.sent) == 10)
    environment.cancel(PAUSED)
    await asyncio.sleep(0.01)
    go.set()
    with pytest.raises(ApplicationError, match="1 of 10 requests to retry"):
        await running
    assert len(worker.committed().records) == 9
    assert worker.committed().tried == {3: Tries(1)}


# When the store is away


async def test_answers_outlive_the_store_being_away_and_nothing_more_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = ShardWorker(tmp_path, 10, in_flight=2)
    worker.engine.held = {5, 6}
    worker.store.down = True
    running, _ = worker.start()
    with caplog.at_level(logging.WARNING):
        await until(lambda: worker.store.refused > 2)
    sent = list(worker.engine.sent)
    assert sent == [1, 2, 3, 4, 5, 6]
    assert worker.limiter.is_paused
    worker.engine.release()
    await until(lambda: worker.engine.in_flight == 0)
    refused = worker.store.refused
    await until(lambda: worker.store.refused > refused + 2)
    assert worker.engine.sent == sent

    worker.store.down = False
    with pytest.raises(
        ApplicationError, match="requests to retry: the store cannot be used: No space left on device"
    ) as caught:
        await running
    assert str(tmp_path) not in caught.value.message
    assert sorted(worker.committed().records) == sent
    assert not worker.limiter.is_paused
    assert sum("cannot write to the store" in record.message for record in caplog.records) == 1

    assert (await worker.run(attempt=2)).completed == 10
    assert sorted(worker.engine.sent) == list(range(1, 11))
    worker.settled()


async def test_a_wait_for_the_store_is_one_however_many_answers_come_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.01)
    worker = ShardWorker(tmp_path, 10, in_flight=2)
    worker.engine.held = {5, 6}
    worker.store.down = True
    running, _ = worker.start()
    await until(lambda: bool(worker.beats) and bool(worker.beats[-1].waits))
    (begun,) = worker.beats[-1].waits
    worker.engine.release()
    await until(lambda: worker.engine.in_flight == 0)
    beats = len(worker.beats)
    await until(lambda: len(worker.beats) > beats + 1)
    assert worker.beats[-1].waits == [begun]
    worker.store.down = False
    await asyncio.gather(running, return_exceptions=True)
    (wait,) = worker.committed().waits
    assert (wait.kind, wait.times, wait.ended is not None) == (WaitKind.STORE, 1, True)


async def test_a_shard_that_comes_while_the_disk_is_full_says_that_the_operator_must_act(worker: ShardWorker) -> None:
    worker.limiter.wait = store_wait("its disk is full", is_lasting=True)
    worker.limiter.block()
    (wait,) = (await worker.run_to_retry()).details
    assert (wait.kind, wait.ends_by, wait.requests) == (WaitKind.STORE, EndsBy.OPERATOR, 10)


async def test_a_finish_waits_for_the_store(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 4, interval=3600)
    worker.engine.held = {4}
    running, _ = worker.start()
    await until(lambda: worker.engine.in_flight == 1)
    worker.store.down = True
    worker.engine.release()
    await until(lambda: worker.store.refused > 2)
    worker.store.down = False
    assert (await running).completed == 4
    assert not worker.limiter.is_paused


async def test_cancel_while_the_store_is_away_loses_no_answer(worker: ShardWorker) -> None:
    worker.engine.held = {1}
    worker.store.down = True
    running, environment = worker.start()
    await until(lambda: worker.store.refused > 1 and worker.engine.in_flight == 1)
    environment.cancel()
    await until(lambda: worker.engine.cancelled == [1])
    worker.store.down = False
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert set(worker.committed().records) == set(worker.engine.sent) - {1}
    assert not worker.limiter.is_paused


async def test_parts_that_vanish_without_a_result_do_not_stop_the_worker(worker: ShardWorker) -> None:
    # Somebody cleaned up behind a zombie. Waiting would not bring them back, and would block every other batch.
    worker.engine.fail([3], refusal(500))
    await worker.run_to_retry()
    worker.engine.held = {3}
    running, _ = worker.start(attempt=2)
    await until(lambda: worker.engine.in_flight == 1)
    worker.store.delete_prefix(shard_keys.parts_prefix(SHARD))
    worker.engine.release()
    await asyncio.wait([running], timeout=5)
    assert running.done()
    assert isinstance(running.exception(), Exception)
    assert not worker.limiter.is_paused


# Faults of ours


async def test_a_bug_in_sending_ends_the_attempt_with_it(worker: ShardWorker) -> None:
    worker.engine.fail([3], ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        await worker.run()
    assert 3 not in worker.committed().records
    assert 1 in worker.committed().records
    assert (await worker.run(attempt=2)).completed == 10
