"""The two activities that end a batch: result files, final record, and nothing left over."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from activities import heartbeats as in_thread
from activities import write_files
from activities.close_batch import CloseBatch
from activities.input import scan as scan_rules
from activities.input.scan_process import ScanProcesses
from activities.records import keys, shard_keys
from activities.records.catalog import Catalog
from activities.records.shard_keys import ShardRef
from activities.results import merged_lines
from activities.results.output_lines import OutputLines
from activities.results.shard_log import ShardLog
from activities.results.tries import Tries
from activities.store.object_store import StoreError
from activities.upstreams.answers import Answer
from activities.upstreams.config import Upstream
from activities.validate_input import ValidateInput
from activities.write_files import WriteFiles
from tests.fakes.worker import (
    BATCH,
    ONLY_UPSTREAM,
    REF,
    TENANT,
    FakeEngine,
    FakeRuns,
    ShakyStore,
    activity_environment,
    completion,
    make_spec,
    refusal,
    request_line,
    save_input,
)
from workflows.end_types import CloseBatchInput, MergedFiles, WriteFilesInput
from workflows.types import (
    BatchError,
    BatchPhase,
    BatchStatus,
    Counts,
    MissingReason,
    Shard,
    ShardResult,
    Usage,
    ValidateResult,
)
from workflows.waits import Wait, WaitKind

SPEC = make_spec(output_expires_after=3600)
LINES = OutputLines(BATCH)


async def end_batch(store: ShakyStore, task: WriteFilesInput, outcome: BatchPhase, **status: Any) -> BatchStatus:
    """As the workflow does: merge, decide and close."""
    environment, _ = activity_environment()
    merged = await environment.run(WriteFiles(store).write_files, task)
    outcome = BatchPhase.FAILED if merged.errors else outcome
    known = {name: value for name, value in merged if value and name in BatchStatus.model_fields}
    ended: dict[str, Any] = {f"{outcome}_at": int(time.time()), "outcome": outcome, "finished_shards": ""}
    at_end = BatchStatus(**(status | known | ended))
    close = CloseBatchInput(spec=task.spec, status=at_end, keep_answers=bool(merged.errors))
    return await environment.run(CloseBatch(store, FakeRuns().runs).close_batch, close)


class Batch:
    """A validated batch in a store; the tests answer its requests."""

    def __init__(self, store: ShakyStore) -> None:
        self.store = store
        self.files = Catalog(store)
        self.attempts: list[str | None] = []
        self.total = 0
        self.cut = ""
        self.upstream = ONLY_UPSTREAM

    async def begin(self, requests: int, content: bytes | None = None) -> None:
        self.store.delete(keys.input_key(REF))
        save_input(self.store, content or b"".join(request_line(n) for n in range(1, requests + 1)))
        await self.validate()
        self.files.delete_file(TENANT, SPEC.input_file_id)

    async def validate(self) -> None:
        environment, _ = activity_environment()
        engine = FakeEngine(upstream=self.upstream)
        result = await environment.run(
            ValidateInput(self.store, [engine.client], ScanProcesses(1)).validate_input, SPEC
        )
        self.shards, self.total, self.cut = result.shards, result.total, result.cut
        self.attempts = [None] * len(result.shards)

    def places(self, shard: int) -> list[int]:
        """Line numbers of the requests of a shard, in a batch that has a sending order."""
        return [place.line for place in self.files.get_places(REF, self.cut, self.shards[shard])]

    def log(self, shard: int, attempt: str = "000001-a") -> ShardLog:
        return ShardLog(self.store, ShardRef(REF, self.cut, shard), attempt)

    async def finish(self, shard: int, *answers: Answer, attempt: str = "000001-a") -> ShardResult:
        log = self.log(shard, attempt)
        assert await log.load() is None
        self.answer(log, shard, *answers)
        await log.commit()
        result = await log.finish()
        self.attempts[shard] = result.attempt
        return result

    def answer(self, log: ShardLog, shard: int, *answers: Answer) -> None:
        for number, answer in enumerate(answers, self.shards[shard].first_line):
            if answer.usage:
                log.add(number, "output", LINES.success(number, b'"r%d"' % number, answer), answer.usage)
            else:
                log.add(number, "error", LINES.error(number, b'"r%d"' % number, answer))

    async def write(
        self, outcome: BatchPhase = BatchPhase.COMPLETED, missing: MissingReason = MissingReason.FAILED, **status: Any
    ) -> BatchStatus:
        values: dict[str, Any] = {"counts": Counts(total=self.total), "finished_shards": "0-1", **status}
        return await end_batch(self.store, self.task(missing), outcome, **values)

    def task(self, missing: MissingReason) -> WriteFilesInput:
        return WriteFilesInput(spec=SPEC, attempts=self.attempts, missing=missing, cut=self.cut)

    def content(self, file_id: str | None) -> bytes:
        assert file_id
        return self.store.get(keys.content_key(TENANT, file_id))

    def ids(self, file_id: str | None) -> list[str]:
        return [json.loads(line)["custom_id"] for line in self.content(file_id).splitlines()]

    def left(self) -> list[str]:
        prefix = f"batches/{TENANT}/{BATCH}/"
        return [key.removeprefix(prefix) for key in self.store.list(prefix)]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(ShakyStore(str(tmp_path)))


RECORDS = ["created.json", "record.json", "running.json"]


async def test_both_files_in_input_order_with_record_and_nothing_left_over(batch: Batch) -> None:
    await batch.begin(4)
    for shard in (3, 1, 0, 2):
        await batch.finish(shard, refusal(400) if shard in (0, 2) else completion(shard + 1))
    before = int(time.time())
    status = await batch.write()

    assert (status.phase, status.counts) == (BatchPhase.COMPLETED, Counts(total=4, completed=2, failed=2))
    assert (status.usage.input_tokens, status.usage.output_tokens) == (2 + 4, 2)
    assert status.completed_at
    assert status.completed_at >= before
    assert status.finished_shards == ""
    assert batch.ids(status.output_file_id) == ["r2", "r4"]
    assert batch.ids(status.error_file_id) == ["r1", "r3"]
    assert batch.left() == RECORDS
    final = batch.files.get_final(REF)
    assert final
    assert (final.status, final.spec) == (status, SPEC)

    for kind, file_id in (("output", status.output_file_id), ("error", status.error_file_id)):
        record = batch.files.get_file(TENANT, file_id or "")
        assert (record.filename, record.purpose) == (f"{BATCH}_{kind}.jsonl", "batch_output")
        assert record.bytes == len(batch.content(file_id))
        assert record.expires_at == record.created_ms // 1000 + 3600
    listed = [record.id for record in batch.files.list_files(TENANT, after=None)]
    assert set(listed) == {status.output_file_id, status.error_file_id}


@pytest.mark.parametrize("good", [True, False])
async def test_there_are_no_empty_files(batch: Batch, good: bool) -> None:
    await batch.begin(1)
    await batch.finish(0, completion(1) if good else refusal(400))
    status = await batch.write()
    assert (status.output_file_id is None, status.error_file_id is None) == (not good, good)
    assert len(list(batch.files.list_files(TENANT, after=None))) == 1


async def test_a_batch_that_failed_its_validation_has_a_record_and_no_files(batch: Batch) -> None:
    errors = [BatchError(code="empty_file", message="…")]
    status = await batch.write(BatchPhase.FAILED, errors=errors, errors_total=1)
    assert (status.phase, status.errors, status.failed_at is None) == (BatchPhase.FAILED, errors, False)
    assert (status.output_file_id, status.error_file_id) == (None, None)
    assert batch.left() == ["record.json"]


# Requests without an answer


@pytest.mark.parametrize(
    ("outcome", "missing", "code", "ended"),
    [
        (BatchPhase.EXPIRED, MissingReason.EXPIRED, "batch_expired", "expired_at"),
        (BatchPhase.CANCELLED, MissingReason.CANCELLED, "batch_cancelled", "cancelled_at"),
        (BatchPhase.COMPLETED, MissingReason.FAILED, "batch_failed", "completed_at"),
    ],
)
async def test_each_request_without_an_answer_gets_a_line_that_says_why(
    batch: Batch, outcome: BatchPhase, missing: MissingReason, code: str, ended: str
) -> None:
    content = b"\xef\xbb\xbf\r\n" + request_line(1, custom_id='é"\\') + b"\n" + request_line(2) + request_line(3)
    await batch.begin(3, content)
    log = batch.log(1)
    log.add(4, "output", LINES.success(4, b'"r2"', completion(2)), Usage(input_tokens=2))
    log.note_tries(4, Tries(1))
    await log.commit()  # answered, and then its shard was stopped
    status = await batch.write(outcome, missing)

    assert getattr(status, ended)
    assert status.counts == Counts(total=3, completed=1, failed=2, unanswered=2)
    assert status.usage.input_tokens == 2
    assert batch.ids(status.output_file_id) == ["r2"]
    assert batch.ids(status.error_file_id) == ['é"\\', "r3"]
    for line in batch.content(status.error_file_id).splitlines():
        content_of = json.loads(line)
        assert content_of["response"] is None
        assert content_of["error"]["code"] == code
    assert batch.left() == RECORDS


async def test_shards_of_many_requests_finished_and_not(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_rules, "GROUP_REQUESTS", 100)
    await batch.begin(650)  # six of a hundred, one of fifty
    await batch.finish(1, *(completion(n) for n in range(101, 201)))
    log = batch.log(2)
    batch.answer(log, 2, *(completion(n) for n in range(201, 251)), refusal(400))
    await log.commit()
    status = await batch.write(BatchPhase.CANCELLED, MissingReason.CANCELLED)
    assert batch.ids(status.output_file_id) == [f"r{n}" for n in range(101, 251)]
    assert batch.ids(status.error_file_id) == [f"r{n}" for n in [*range(1, 101), *range(251, 651)]]
    assert status.counts == Counts(total=650, completed=150, failed=500, unanswered=499)


async def test_a_shard_that_ended_unreported_is_adopted(batch: Batch) -> None:
    await batch.begin(2)
    await batch.finish(0, completion(1))
    await batch.finish(1, completion(2), attempt="000007-z")
    batch.attempts = []
    status = await batch.write(BatchPhase.CANCELLED, MissingReason.CANCELLED)
    assert batch.ids(status.output_file_id) == ["r1", "r2"]
    assert status.error_file_id is None


async def test_what_a_shard_that_ended_unreported_has_waited_for_is_reported(batch: Batch) -> None:
    await batch.begin(2)
    unreported, reported = batch.log(0), batch.log(1)
    for shard, log in enumerate((unreported, reported)):
        log.waits.begin(Wait(kind=WaitKind.UPSTREAM, subject=f"engine {shard}", reason="is away"))
        batch.answer(log, shard, completion(shard + 1))
        await log.finish()
    batch.attempts[1] = "000001-a"
    environment, _ = activity_environment()
    merged = await environment.run(WriteFiles(batch.store).write_files, batch.task(MissingReason.CANCELLED))
    assert [(wait.subject, wait.ended is not None) for wait in merged.waits] == [("engine 0", True)]


async def test_the_object_that_the_run_names_counts(batch: Batch) -> None:
    await batch.begin(1)
    zombie = batch.log(0, "000001-a")
    await zombie.load()
    await batch.finish(0, completion(1), attempt="000002-b")
    batch.answer(zombie, 0, refusal(400))
    await zombie.finish()
    status = await batch.write()
    assert (status.output_file_id is not None, status.error_file_id) == (True, None)


# Doing it again


async def test_the_second_call_changes_nothing(batch: Batch) -> None:
    await batch.begin(2)
    await batch.finish(0, completion(1))
    first = await batch.write()
    content = batch.content(first.output_file_id)
    written = len(batch.store.written)
    assert await batch.write(BatchPhase.FAILED) == first
    assert batch.content(first.output_file_id) == content
    assert len(batch.store.written) == written


@pytest.mark.parametrize("at", range(1, 8))
async def test_a_crash_at_any_write_leads_to_the_same_files(batch: Batch, at: int) -> None:
    await batch.begin(3)
    await batch.finish(0, completion(1))
    writes = 0

    def fail(key: str) -> None:
        nonlocal writes
        writes += 1
        if writes == at:
            batch.store.down = True

    batch.store.on_write = fail
    with pytest.raises(StoreError):
        await batch.write()
    seen = {(record.id, record.created_ms) for record in batch.files.list_files(TENANT, after=None)}
    batch.store.on_write = lambda key: None
    batch.store.down = False
    status = await batch.write()
    assert batch.ids(status.output_file_id) == ["r1"]
    assert batch.ids(status.error_file_id) == ["r2", "r3"]
    now = [(record.id, record.created_ms) for record in batch.files.list_files(TENANT, after=None)]
    assert len(now) == 2
    assert seen <= set(now)  # what a client has seen keeps its place in the list
    assert batch.left() == RECORDS


async def test_what_a_crash_before_the_clean_up_left_goes_with_the_next_call(batch: Batch) -> None:
    await batch.begin(1)
    await batch.finish(0, completion(1))
    final = await batch.write()
    await batch.begin(1)  # the leftovers, back again
    assert await batch.write() == final
    assert batch.left() == RECORDS


async def test_an_attempt_that_is_overtaken_between_two_shards_fails_and_writes_nothing(batch: Batch) -> None:
    # The slow one must not take what the fast one has cleaned away for "not answered".
    await batch.begin(2)
    for shard in (0, 1):
        log = batch.log(shard)
        batch.answer(log, shard, completion(shard + 1))
        await log.commit()
    delete_prefix = batch.store.delete_prefix

    class WriteInterruptedError(Exception):
        pass

    def stop_after_parts(prefix: str) -> None:
        delete_prefix(prefix)
        if "/parts/" in prefix:
            raise WriteInterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch.store, "delete_prefix", stop_after_parts)
        with pytest.raises(WriteInterruptedError):
            await batch.write(BatchPhase.CANCELLED, MissingReason.CANCELLED)
    # In this moment the slow attempt looks at a shard; it had asked for the record before.
    asked = iter([None])
    find = Catalog.get_final
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "get_final", lambda *of: next(asked, find(*of)))  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
        with pytest.raises(StoreError, match="another attempt has ended the batch"):
            await batch.write(BatchPhase.CANCELLED, MissingReason.CANCELLED)


# One result for each line


async def spoil(batch: Batch, how: str) -> None:
    key = shard_keys.result_key(ShardRef(REF, batch.cut, 0), "000001-a")
    log = ShardLog(batch.store, ShardRef(REF, batch.cut, 1), "000001-a")
    batch.store.delete_prefix(f"{key.rsplit('/', 2)[0]}/000001/")
    log.add({"twice": 1, "another": 3}.get(how, 2), "output", b"{}\n")
    await log.finish()
    if how == "no input":
        batch.store.delete(key, keys.input_key(REF))
    if how == "no cut":
        batch.store.delete_prefix(keys.cuts_prefix(REF))
    if how == "too few":
        empty = ShardLog(batch.store, ShardRef(REF, batch.cut, 0), "000001-a")
        await empty.finish()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("twice", "line 1 of the input has two results"),
        ("another", "the lines that have results are not the lines that are requests"),
        ("too few", "1 + 0 result lines for 2 requests"),
        ("no input", "the store has no batches/t/batch_1/input any more"),
        ("no cut", "the store has no batches/t/batch_1/cuts/"),
    ],
)
async def test_what_is_not_one_result_for_each_line_fails_the_batch_and_is_kept(
    batch: Batch, how: str, message: str
) -> None:
    await batch.begin(2)
    await batch.finish(0, completion(1))
    await batch.finish(1, completion(2))
    await spoil(batch, how)
    status = await batch.write()
    assert (status.phase, [error.code for error in status.errors]) == (BatchPhase.FAILED, ["results_incomplete"])
    assert message in status.errors[0].message
    assert status.failed_at
    assert list(batch.files.list_files(TENANT, after=None)) == []
    assert await batch.write() == status
    assert any(key.startswith("results/") for key in batch.left())
    final = batch.files.get_final(REF)
    assert final
    assert final.keep_leftovers_until


async def test_answers_of_another_cut_count_by_their_lines(batch: Batch) -> None:
    await batch.begin(4)
    await batch.finish(0, completion(1))
    log = batch.log(2)
    batch.answer(log, 2, completion(3))
    await log.commit()
    first = batch.files.get_cut(REF, batch.cut)
    other = first._replace(shards=[Shard(0, sum(shard.length for shard in first.shards), 1, 4)])
    batch.files.save_cut(REF, other)
    batch.cut, batch.attempts[:] = other.digest, [None]
    status = await batch.write(BatchPhase.CANCELLED, MissingReason.CANCELLED)
    assert (batch.ids(status.output_file_id), batch.ids(status.error_file_id)) == (["r1", "r3"], ["r2", "r4"])


async def test_a_run_that_made_no_cut_of_its_own_still_writes_what_is_answered(batch: Batch) -> None:
    await batch.begin(2)
    await batch.finish(1, completion(2))
    batch.cut, batch.attempts = "", []
    status = await batch.write(BatchPhase.CANCELLED, MissingReason.CANCELLED, counts=Counts())
    assert status.counts == Counts(total=2, completed=1, failed=1, unanswered=1)
    assert (batch.ids(status.output_file_id), batch.ids(status.error_file_id)) == (["r2"], ["r1"])


# Size and time


async def test_large_answers_are_streamed(batch: Batch) -> None:
    await batch.begin(30)
    text = "x" * 1_000_000
    for shard in range(20):
        answer = completion(shard + 1)
        large = Answer(answer.verdict, 200, b'{"text":"%b"}' % text.encode(), "", answer.usage)
        if shard % 2:
            await batch.finish(shard, large)
        else:
            log = batch.log(shard)
            batch.answer(log, shard, large)
            await log.commit()
    tracemalloc.start()
    try:
        status = await batch.write(BatchPhase.EXPIRED, MissingReason.EXPIRED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
    assert status.counts == Counts(total=30, completed=20, failed=10, unanswered=10)
    assert len(batch.content(status.output_file_id)) > 20_000_000


async def test_it_heartbeats_while_it_writes(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_thread, "BEAT_SECONDS", 0.001)
    await batch.begin(300)
    environment, beats = activity_environment()
    await environment.run(WriteFiles(batch.store).write_files, batch.task(MissingReason.EXPIRED))
    assert beats


async def test_what_a_run_that_was_lost_has_left_is_merged(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_files, "SETTLE_SECONDS", 0.01)
    environment, _ = activity_environment()
    task = WriteFilesInput(spec=SPEC, missing=MissingReason.CANCELLED, is_checked=False)
    assert await environment.run(WriteFiles(batch.store).write_files, task) == MergedFiles()
    await batch.begin(3)
    nobody_answered = await environment.run(WriteFiles(batch.store).write_files, task)
    assert nobody_answered.counts == Counts(total=3, completed=0, failed=3, unanswered=3)
    await batch.finish(1, completion(2))
    merged = await environment.run(WriteFiles(batch.store).write_files, task)
    assert merged.counts == Counts(total=3, completed=1, failed=2, unanswered=2)
    assert (batch.ids(merged.output_file_id), batch.ids(merged.error_file_id)) == (["r2"], ["r1", "r3"])
    assert merged.in_progress_at
    assert merged.model == "m"


async def test_the_deepest_line_that_is_accepted_can_be_read_again(batch: Batch) -> None:
    # How deep a parser goes depends on the depth of its callers, and what one activity accepts all must read.
    def nested(depth: int) -> bytes:
        return request_line(1, messages="@").replace(b'"@"', b"[" * depth + b"]" * depth)

    good, bad = 1, 100_000
    while bad - good > 1:
        depth = (good + bad) // 2
        batch.store.delete(keys.input_key(REF))
        save_input(batch.store, nested(depth))
        environment, _ = activity_environment()
        result = await environment.run(
            ValidateInput(batch.store, [FakeEngine().client], ScanProcesses(1)).validate_input, SPEC
        )
        good, bad = (depth, bad) if not result.errors else (good, depth)
    assert good > 100
    await batch.begin(1, nested(good))
    status = await batch.write(BatchPhase.EXPIRED, MissingReason.EXPIRED)
    assert batch.ids(status.error_file_id) == ["r1"]


LONG_TEXTS = ["one prompt " * 100, "another prompt " * 100, "a third prompt " * 100]


def taking_turns_of_prefixes(count: int) -> bytes:
    return b"".join(
        request_line(n, messages=[{"role": "user", "content": f"{LONG_TEXTS[n % 3]} {n}"}]) for n in range(1, count + 1)
    )


class TestInPrefixOrder:
    """Shards of which each has lines from all over the input."""

    @pytest.fixture
    async def batch(self, batch: Batch) -> Batch:
        await batch.begin(300, b"\n" + taking_turns_of_prefixes(300))
        places = [batch.places(index) for index in range(len(batch.shards))]
        assert any(numbers != list(range(numbers[0], numbers[-1] + 1)) for numbers in places)
        assert sorted(line for numbers in places for line in numbers) == list(range(2, 302))
        return batch

    async def finish(self, batch: Batch, shard: int) -> None:
        log = batch.log(shard)
        assert await log.load() is None
        for number in batch.places(shard):
            log.add(number, "output", LINES.success(number, b'"r%d"' % (number - 1), completion(number)), Usage())
        await log.commit()
        batch.attempts[shard] = (await log.finish()).attempt

    async def commit(self, batch: Batch, shard: int, lines: list[int]) -> None:
        log = batch.log(shard)
        for number in lines:
            log.add(number, "error", LINES.error(number, b'"r%d"' % (number - 1), refusal(400)))
            await log.commit()

    async def test_the_files_are_in_input_order(self, batch: Batch) -> None:
        for shard in reversed(range(len(batch.shards))):
            await self.finish(batch, shard)
        status = await batch.write()
        assert status.counts == Counts(total=300, completed=300)
        assert batch.ids(status.output_file_id) == [f"r{n}" for n in range(1, 301)]
        assert batch.left() == RECORDS

    async def test_finished_shards_and_stopped_ones_and_such_as_never_began(self, batch: Batch) -> None:
        await self.finish(batch, 3)
        some = batch.places(5)[::3]
        await self.commit(batch, 5, some)
        done = batch.places(3)
        status = await batch.write(BatchPhase.CANCELLED, MissingReason.CANCELLED)
        assert status.counts == Counts(
            total=300, completed=len(done), failed=300 - len(done), unanswered=300 - len(done) - len(some)
        )
        assert batch.ids(status.output_file_id) == [f"r{n - 1}" for n in sorted(done)]
        assert batch.ids(status.error_file_id) == [f"r{n}" for n in range(1, 301) if n + 1 not in done]
        codes = [json.loads(line)["error"] for line in batch.content(status.error_file_id).splitlines()]
        assert sum(error["code"] == "batch_cancelled" for error in codes) == 300 - len(done) - len(some)

    async def test_answers_of_another_order_count(self, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
        await self.finish(batch, 0)
        done = batch.places(0)
        await self.commit(batch, 4, batch.places(4)[:2])
        refused = batch.places(4)[:2]
        monkeypatch.setattr(batch, "upstream", Upstream(name="default", urls=("http://e/v1",), order="input"))
        before = batch.cut
        await batch.validate()
        assert batch.cut != before
        log = batch.log(0)
        again = next(number for number in range(2, 34) if number in done)
        log.add(again, "error", LINES.error(again, b'"r%d"' % (again - 1), refusal(400)))
        await log.commit()  # of its own cut, so it counts
        status = await batch.write(BatchPhase.CANCELLED, MissingReason.CANCELLED)
        assert batch.ids(status.output_file_id) == [f"r{n - 1}" for n in sorted(done) if n != again]
        errors = [json.loads(line) for line in batch.content(status.error_file_id).splitlines()]
        assert [line["custom_id"] for line in errors if line["response"]] == [
            f"r{n - 1}" for n in sorted([*refused, again])
        ]
        assert status.counts.unanswered == 300 - len(done) - len(refused)

    async def test_an_object_that_vanished_is_as_a_shard_that_never_finished(self, batch: Batch) -> None:
        for shard in range(len(batch.shards)):
            await self.finish(batch, shard)
        batch.store.delete(shard_keys.result_key(ShardRef(REF, batch.cut, 1), "000001-a"))
        status = await batch.write()
        assert status.counts.unanswered == batch.shards[1].requests

    async def test_what_is_held_in_memory_is_bounded(self, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
        text = b"x" * 100_000
        for shard in range(len(batch.shards)):
            log = batch.log(shard)
            for number in batch.places(shard):
                answer = completion(number)
                large = Answer(answer.verdict, 200, b'{"text":"%b"}' % text, "", answer.usage)
                log.add(number, "output", LINES.success(number, b'"r"', large), Usage())
                await log.commit()
            if shard % 2:
                batch.attempts[shard] = (await log.finish()).attempt
        monkeypatch.setattr(merged_lines, "READ_BYTES", 3_000_000)
        tracemalloc.start()
        try:
            status = await batch.write()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert status.counts.completed == 300
        assert len(batch.content(status.output_file_id)) > 30_000_000
        assert peak < 10_000_000


class MixedBatch:
    """A batch for two upstreams, validated; what is odd is for the first."""

    def __init__(self, store: ShakyStore) -> None:
        self.store = store
        engines = [
            FakeEngine(upstream=Upstream(name=name, urls=("http://e/v1",), models=(name,))) for name in ("odd", "even")
        ]
        self._validate = ValidateInput(store, [engine.client for engine in engines], ScanProcesses(1)).validate_input

    async def begin(self, requests: int, **body: Any) -> ValidateResult:
        lines = [request_line(n, model="odd" if n % 2 else "even", **body) for n in range(1, requests + 1)]
        return await self.begin_with(b"".join(lines))

    async def begin_with(self, content: bytes) -> ValidateResult:
        self.store.delete(keys.input_key(REF))
        save_input(self.store, content)
        environment, _ = activity_environment()
        self.result = await environment.run(self._validate, SPEC)
        return self.result

    async def write(self, outcome: BatchPhase, attempts: list[str | None]) -> BatchStatus:
        task = WriteFilesInput(spec=SPEC, attempts=attempts, missing=MissingReason.CANCELLED, cut=self.result.cut)
        return await end_batch(self.store, task, outcome)


async def test_shards_that_lie_across_each_other_are_merged_in_input_order(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_rules, "GROUP_REQUESTS", 100)
    mixed = MixedBatch(batch.store)
    result = await mixed.begin(600)
    assert (result.upstreams, len(result.shards)) == (["odd", "even"], 6)
    batch.cut = result.cut
    first, second = (next(n for n, shard in enumerate(result.shards) if shard.upstream == place) for place in (0, 1))
    attempts: list[str | None] = [None] * 6
    log = batch.log(first)
    assert await log.load() is None
    for number in range(1, 200, 2):  # all of the first hundred odd ones
        log.add(number, "output", LINES.success(number, b'"r%d"' % number, completion(number)), Usage())
    attempts[first] = (await log.finish()).attempt
    log = batch.log(second)
    for number in (4, 200):  # some of the even ones
        log.add(number, "output", LINES.success(number, b'"r%d"' % number, completion(number)), Usage())
    await log.commit()
    status = await mixed.write(BatchPhase.CANCELLED, attempts)
    assert status.counts == Counts(total=600, completed=102, failed=498, unanswered=498)
    answered = sorted([*range(1, 200, 2), 4, 200])
    assert batch.ids(status.output_file_id) == [f"r{n}" for n in answered]
    assert batch.ids(status.error_file_id) == [f"r{n}" for n in range(1, 601) if n not in answered]
    assert [key for key in batch.left() if key.startswith("cuts/")] == []


async def test_the_objects_of_several_upstreams_are_opened_when_their_turn_comes(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = MixedBatch(batch.store)
    batch.cut = (
        await mixed.begin_with(b"".join(request_line(n, model="odd" if n <= 3 else "even") for n in range(1, 7)))
    ).cut
    attempts: list[str | None] = []
    for shard in range(6):
        log = batch.log(shard)
        assert await log.load() is None
        log.add(shard + 1, "output", LINES.success(shard + 1, b'"r"', completion(shard + 1)), Usage())
        attempts.append((await log.finish()).attempt)
    opened: list[str] = []
    stream = batch.store.stream

    def opening(key: str, *arguments: Any) -> Iterator[bytes]:
        opened.append(key)
        return stream(key, *arguments)

    monkeypatch.setattr(batch.store, "stream", opening)
    await mixed.write(BatchPhase.COMPLETED, attempts)
    results = [key for key in opened if "/results/" in key]
    assert len(results) == 6
    assert results == sorted(results)


async def test_the_deepest_line_of_a_mixed_batch_can_be_read_again(batch: Batch) -> None:
    def nested(depth: int) -> bytes:
        lines = [request_line(n, model=("even", "odd")[n % 2], messages="@") for n in (1, 2)]
        return b"".join(lines).replace(b'"@"', b"[" * depth + b"]" * depth)

    mixed = MixedBatch(batch.store)
    good, bad = 1, 100_000
    while bad - good > 1:
        depth = (good + bad) // 2
        good, bad = (depth, bad) if not (await mixed.begin_with(nested(depth))).errors else (good, depth)
    assert good > 100
    await mixed.begin_with(nested(good))
    status = await mixed.write(BatchPhase.CANCELLED, [None, None])
    assert batch.ids(status.error_file_id) == ["r1", "r2"]
