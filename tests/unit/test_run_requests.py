"""The activity that runs a shard, with a scripted engine and a store in a folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import heartbeats
from activities.input.jsonl import read_lines
from activities.records import keys, shard_keys
from activities.records.catalog import Catalog
from activities.records.cuts import Cut
from activities.records.sending_order import ENTRY_BYTES, LinePlace, pack_places
from activities.records.shard_keys import ShardRef
from activities.results import commits
from activities.results.shard_log import ShardLog, Tries
from activities.upstreams.answers import Answer, Verdict
from activities.upstreams.config import Upstream
from tests.fakes.shard_worker import SHARD, ShardWorker
from tests.fakes.worker import (
    REF,
    TENANT,
    refusal,
    reply,
    request_line,
    until,
)
from workflows.ids import BatchRef
from workflows.types import Shard, Usage

TIMEOUT = Answer(
    Verdict.TIMED_OUT, code="request_timeout", message="The inference server gave no answer.", reason="late"
)
REFUSED = Answer(Verdict.UNREACHABLE, code="connection_error", message="…", reason="connection refused")


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[ShardWorker]:
    worker = ShardWorker(tmp_path, 10)
    yield worker
    worker.settled()


@pytest.fixture(autouse=True)
def fast_store_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "STORE_RETRY_SECONDS", 0.01)


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
    assert list(worker.store.list(shard_keys.parts_prefix(SHARD))) == []


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
    assert (
        error.message
        == "2 of 10 requests to retry: the upstream (http://engine/v1) answered HTTP 500 Internal Server Error"
    )
    assert (error.type, error.non_retryable) == ("RequestsToRetry", False)
    assert error.category is ApplicationErrorCategory.BENIGN
    assert (len(worker.committed().records), worker.committed().tried) == (8, {3: Tries(1), 7: Tries(1)})

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
        worker.engine.fail(range(1, 11), answer)
        await worker.run_to_retry(attempt)
        assert worker.committed().tried == {}
        worker.pass_pause()
    worker.engine.script.clear()
    result = await worker.run(attempt=8)
    assert (result.completed, result.failed) == (10, 0)


async def test_retry_after_is_waited_for_and_nothing_of_the_answer_is_shown(worker: ShardWorker) -> None:
    worker.engine.fail(range(1, 11), refusal(503, "secret words", retry_after="40"))
    error = await worker.run_to_retry()
    assert error.next_retry_delay is not None
    assert 39 < error.next_retry_delay.total_seconds() < 45
    assert error.message == (
        "10 of 10 requests to retry: the upstream (http://engine/v1) is overloaded (HTTP 503 Service Unavailable) "
        "and asks to wait 40 s"
    )
    (wait,) = error.details
    assert (wait.kind, wait.ends_by, wait.requests) == ("upstream", "itself", 10)
    assert len(worker.engine.sent) <= 10  # what was in flight, and one that its first refusal made room for

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
        worker.engine.fail(held, *[REFUSED] * 8)
        await worker.run_to_retry(attempt=1)
        worker.pass_pause()
        worker.engine.script.clear()
        assert sorted(worker.committed().records) == [n for n in range(1, 11) if n not in held]
    assert (await worker.run(attempt=1)).completed == 10


# Progress


async def test_heartbeats_report_what_is_committed_and_in_flight(
    worker: ShardWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.01)
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
    assert error.message == '10 of 10 requests to retry: upstream "gpu-1" (http://10.0.0.1/v1) refuses connections'
    later = await worker.run_to_retry(attempt=2)
    assert later.message == error.message


async def test_a_shard_of_a_batch_with_a_sending_order_sends_its_own_requests_in_that_order(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 11, in_flight=1)
    lines = list(read_lines(worker.store.stream(keys.input_key(REF)), 1 << 20))
    mine = [10, 2, 11, 4, 6, 8]
    places = [LinePlace(line.offset, line.length, number) for number in mine for line in lines if line.number == number]
    cut = Cut("", "", [], ["default"], order="digest")
    # Behind the entry of another shard.
    Catalog(worker.store).save_cut(REF, cut, pack_places([LinePlace(0, 1, 1), *places], 7))
    task: dict[str, Any] = {"shard": Shard(ENTRY_BYTES, 1000, 10, 6), "cut": cut.digest, "has_order": True}
    worker.engine.fail([4], refusal(503))
    with pytest.raises(ApplicationError, match="of 6 requests to retry"):
        await worker.run(**task)
    assert worker.engine.sent == mine
    worker.pass_pause()
    result = await worker.run(attempt=2, **task)
    assert worker.engine.sent == [*mine, 4]
    assert [line for line, _, _ in worker.lines(result, cut=cut.digest)] == sorted(mine)


async def test_a_request_that_is_too_long_to_hold_is_refused_in_a_sending_order_too(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 0)
    content = b"\xef\xbb\xbf" + request_line(1) + request_line(2, text="x" * 5000) + request_line(3)
    worker.store.put(keys.input_key(REF), content)
    lines = list(read_lines([content], 1 << 20))
    places = [LinePlace(line.offset, line.length, line.number) for line in reversed(lines)]
    cut = Cut("", "", [], ["default"], order="digest")
    Catalog(worker.store).save_cut(REF, cut, pack_places(places, 3))
    result = await worker.run(shard=Shard(0, len(content), 3, 3), cut=cut.digest, has_order=True, max_line_bytes=1000)
    found = [(line, kind) for line, kind, _ in worker.lines(result, cut=cut.digest)]
    assert found == [(1, "output"), (2, "error"), (3, "output")]


async def test_after_a_reset_to_another_order_each_old_answer_is_read_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, size = 20, 4
    count = shards * size
    worker = ShardWorker(tmp_path, count)
    lines = list(read_lines(worker.store.stream(keys.input_key(REF)), 1 << 20))

    def cut(name: str, step: int) -> Cut:
        order = [lines[n * step % count] for n in range(count)]
        made = [Shard(n * size * ENTRY_BYTES, 1000, order[n * size].number, size) for n in range(shards)]
        cut = Cut("input", "lines", made, ["default"], order=name)
        places = (LinePlace(line.offset, line.length, line.number) for line in order)
        Catalog(worker.store).save_cut(REF, cut, pack_places(places, count))
        return cut

    old, new = cut("old", 7), cut("new", 9)
    for n in range(shards):
        log = ShardLog(worker.store, ShardRef(REF, old.digest, n), "000001-a")
        for place in Catalog(worker.store).get_places(REF, old.digest, old.shards[n]):
            log.add(place.line, "output", b'{"line":%d}\n' % place.line)
        await log.finish()
    reads: list[str] = []
    real = worker.store.stream

    def stream(key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        reads.append(key)
        return real(key, offset, length)

    monkeypatch.setattr(worker.store, "stream", stream)
    monkeypatch.setattr("activities.results.other_cuts.SETTLE_SECONDS", 0)  # nothing more is committed
    answered: list[tuple[int, Any]] = []
    for n in range(shards):
        result = await worker.run(index=n, shard=new.shards[n], cut=new.digest, has_order=True)
        for other in range(10):  # batches that were not reset are not remembered
            elsewhere = ShardRef(BatchRef(TENANT, f"other-{other}"), "c1", 0)
            log = ShardLog(worker.store, elsewhere, "000001-a")
            await worker.process.other_cuts.carry_over(worker.store, f"run-{n}-{other}", elsewhere, log, [])
        answered += [(line, content["line"]) for line, _, content in worker.lines(result, n, new.digest)]
    assert sorted(answered) == [(line, line) for line in range(1, count + 1)]
    assert worker.engine.sent == []
    assert sum(f"results/{old.digest}/" in key for key in reads) <= 2 * shards + count


async def test_what_the_run_before_a_reset_commits_a_moment_later_is_taken_over_too(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 4)
    halves = [Shard(0, 1000, 1, 2), Shard(0, 1000, 3, 2)]
    old, new = (Cut("input", name, halves, ["default"]) for name in ("old", "new"))
    for cut in (old, new):
        Catalog(worker.store).save_cut(REF, cut)
    before = [ShardLog(worker.store, ShardRef(REF, old.digest, n), "000001-a") for n in (0, 1)]
    after = [ShardLog(worker.store, ShardRef(REF, new.digest, n), "000001-a") for n in (0, 1)]
    other_cuts = worker.process.other_cuts
    before[0].add(1, "output", b'{"line":1}\n')
    await before[0].commit()
    await other_cuts.carry_over(worker.store, "run", ShardRef(REF, new.digest, 0), after[0], {1, 2})
    before[1].add(3, "output", b'{"line":3}\n')
    await before[1].commit()
    await other_cuts.carry_over(worker.store, "run", ShardRef(REF, new.digest, 1), after[1], {3, 4})
    assert [log.done for log in after] == [1, 1]


# A worker that is lost


def lost(losses: int) -> dict[str, Any]:
    """What Temporal has of an attempt that was lost with its worker, and so many before it."""
    return {"losses": losses, "has_ended": False}


async def test_an_attempt_says_when_it_has_ended(worker: ShardWorker) -> None:
    worker.engine.fail([3], refusal(500))
    await worker.run_to_retry()
    assert (worker.beats[-1].has_ended, worker.beats[-1].losses) == (True, 0)


@pytest.mark.parametrize(
    ("said", "losses"),
    [
        (None, 1),
        (lost(0), 1),
        (lost(1), 2),
        ({"losses": 1, "has_ended": True}, 1),
        ({"losses": "of another version"}, 0),
    ],
)
async def test_an_attempt_that_did_not_end_was_lost(
    worker: ShardWorker, said: dict[str, Any] | None, losses: int
) -> None:
    worker.engine.fail([3], refusal(500))
    with pytest.raises(ApplicationError):
        await worker.run(attempt=2, said=said)
    assert worker.beats[-1].losses == losses


async def test_a_worker_that_stops_is_no_loss(worker: ShardWorker) -> None:
    worker.limiter.drain(0)
    with pytest.raises(ApplicationError):
        await worker.run(attempt=1)
    assert worker.beats[-1].has_ended


async def test_after_two_losses_requests_go_one_at_a_time(worker: ShardWorker) -> None:
    worker.engine.fail([4], refusal(500))
    error = await worker.run_to_retry(attempt=3, said=lost(1))
    assert (
        error.message
        == "1 of 10 requests to retry: the upstream (http://engine/v1) answered HTTP 500 Internal Server Error"
    )
    assert (worker.engine.sent, worker.engine.most_in_flight) == (list(range(1, 11)), 1)
    assert {tries.lost for tries in worker.committed().tried.values()} == {0}


async def test_suspects_of_several_shards_go_one_at_a_time(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 6)
    lengths = [len(request_line(number)) for number in range(1, 7)]
    shards = [Shard(sum(lengths[:n]), sum(lengths[n : n + 3]), n + 1, 3) for n in (0, 3)]
    running = [worker.start(attempt=3, shard=shard, index=index, said=lost(1))[0] for index, shard in enumerate(shards)]
    assert [result.completed for result in await asyncio.gather(*running)] == [3, 3]
    assert worker.engine.most_in_flight == 1


async def test_a_request_that_takes_its_worker_down_each_time_is_convicted_and_the_others_are_not(
    worker: ShardWorker,
) -> None:
    worker.engine.held = {3}  # to which the process goes down
    for number in range(3):
        running, _ = worker.start(attempt=3 + number, said=lost(1 + number))
        await until(lambda: worker.engine.in_flight == 1 and 3 in worker.engine.sent)
        assert worker.committed().tried[3].lost == number + 1
        await worker.kill(running)
    result = await worker.run(attempt=6, said=lost(4))
    assert (result.completed, result.failed) == (9, 1)
    _, kind, content = worker.lines(result)[2]
    assert (kind, content["custom_id"], content["response"]) == ("error", "r3", None)
    assert content["error"]["code"] == "worker_lost"
    assert sorted(worker.engine.sent) == [1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10]
    assert worker.engine.most_in_flight > 1  # once it is known, the rest goes as always


# A wrong route


async def test_a_batch_whose_first_requests_all_get_the_same_404_ends(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 200)
    worker.engine.fail(range(1, 201), *[reply(404, {"detail": "Not Found"})])
    with pytest.raises(ApplicationError, match="each of the first 50 requests with the same HTTP 404;") as it:
        await worker.run()
    assert (it.value.type, it.value.non_retryable) == ("WrongRoute", True)
    assert len(worker.engine.sent) < 50 + 8
    assert len(worker.committed().records) == len(worker.engine.sent)
    worker.settled()


@pytest.mark.parametrize("other", [reply(200, {"choices": []}), reply(404, {"detail": "No model a"}), refusal(400)])
async def test_one_other_answer_shows_that_the_route_is_right(tmp_path: Path, other: Answer) -> None:
    worker = ShardWorker(tmp_path, 100)
    worker.engine.fail(range(1, 101), reply(404, {"detail": "Not Found"}))
    worker.engine.fail([40], other)
    result = await worker.run()
    assert result.completed + result.failed == 100


async def test_what_another_worker_was_answered_shows_it_too(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 200)
    worker.engine.held = set(range(3, 201))
    running, _ = worker.start()
    await until(lambda: len(worker.committed().records) == 2)
    await worker.kill(running)
    worker.engine.release()
    worker.engine.fail(range(3, 201), reply(404, {"detail": "Not Found"}))
    with pytest.raises(ApplicationError, match="requests to retry"):
        await worker.run(attempt=2)
    result = await worker.run(attempt=3)
    assert (result.completed, result.failed) == (2, 198)


async def test_requests_are_read_while_there_is_memory_for_them(tmp_path: Path) -> None:
    worker = ShardWorker(tmp_path, 3)
    budget = worker.process.inputs
    others, beyond = budget.held(), budget.held()
    await others.grow((1 << 20) - 1)
    await beyond.grow(10)  # one at a time may go beyond
    running, _ = worker.start()
    await asyncio.wait({running}, timeout=0.05)
    assert worker.engine.sent == []
    beyond.release()
    others.release()
    assert (await running).completed == 3
    assert budget.used == 0
