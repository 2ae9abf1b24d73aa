"""The errors of failed requests by their codes: counted, bounded, and without messages where Temporal sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from activities.close_batch import CloseBatch
from activities.error_messages import ErrorMessages
from activities.records import keys
from activities.records.catalog import Catalog
from activities.records.shard_keys import ShardRef
from activities.results.error_lines import ErrorTally, read_error
from activities.results.output_lines import OutputLines
from activities.results.shard_log import ShardLog
from activities.upstreams.answers import classify
from tests.fakes.worker import BATCH, REF, TENANT, FakeRuns, ShakyStore, activity_environment, make_spec
from workflows.end_types import CloseBatchInput
from workflows.error_summary import MAX_CODES, OTHER, ErrorCount, summed
from workflows.ids import result_file_id
from workflows.types import BatchPhase, BatchRecord, BatchStatus, Counts

LINES = OutputLines(BATCH)


def refused(line: int, code: str) -> bytes:
    return LINES.refused(line, b'"a"', code, f"why {line}")


def tally(*codes: str, first: int = 1, shard: int | None = None) -> ErrorTally:
    counted = ErrorTally(shard)
    for line, code in enumerate(codes, first):
        counted.add(line, code)
    return counted


def test_the_most_frequent_comes_first_with_its_smallest_lines() -> None:
    counted = tally("rare", *["often"] * 9)
    counted.add(1000, "often")
    assert counted.summary() == [
        ErrorCount(code="often", count=10, first_lines=[2, 3, 4, 5, 6]),
        ErrorCount(code="rare", count=1, first_lines=[1]),
    ]


def test_sums_of_shards_keep_the_first_lines_and_the_shard_that_has_the_first() -> None:
    shards = [tally("a", "a", first=11, shard=1).summary(), tally("a", "b", first=1, shard=0).summary()]
    assert summed([*shards[0], *shards[1]]) == [
        ErrorCount(code="a", count=3, first_lines=[1, 11, 12], shard=0),
        ErrorCount(code="b", count=1, first_lines=[2], shard=0),
    ]


def test_of_many_codes_the_rest_is_other_and_no_count_is_lost() -> None:
    codes = [f"code-{number}" for number in range(100)]
    found = summed([*tally(*codes, *codes[:50]).summary(), *tally(*codes).summary()])
    assert len(found) == MAX_CODES + 1
    assert (found[-1].code, sum(one.count for one in found)) == (OTHER, 250)
    assert found[-1].first_lines == sorted(found[-1].first_lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (refused(1, "worker_lost"), ("worker_lost", "why 1")),
        (b'{"error":null,"response":{"status_code":404,"body":{"error":{"type":"t","message":"m"}}}}', ("t", "m")),
        (
            b'{"error":null,"response":{"status_code":404,"body":{"error":{"code":7,"type":"t"}}}}',
            ("t", "The inference"),
        ),
        (b'{"error":null,"response":{"status_code":418,"body":"tea"}}', ("http_418", "The inference")),
        (refused(1, "Bob Smith, call me"), ("unknown", "why 1")),
        (b"no JSON", ("unknown", None)),
        (json.dumps({"error": {"code": "c", "message": "two\n lines " + "x" * 999}}).encode(), ("c", "two lines xxx")),
    ],
)
def test_code_and_message_of_an_error_line(line: bytes, said: tuple[str, str | None]) -> None:
    code, message = read_error(line)
    assert (code, message and message[:13]) == said
    assert len(message or "") <= 300


SENTENCES = [
    "the prompt 'call Bob Smith' is not allowed",
    "call_bob_smith_who_lives_in_rome",
    "x" * 65,
    "Zürich",
    "a\n",
]


@pytest.mark.parametrize("said", SENTENCES)
@pytest.mark.parametrize("strict", [False, True])
def test_a_text_that_an_engine_sends_as_a_code_is_counted_by_its_status(said: str, strict: bool) -> None:
    for error in ({"code": said, "type": said}, {"code": None, "type": said}):
        answer = classify(400, {}, json.dumps({"error": {**error, "message": "m"}}).encode(), now=0)
        assert read_error(OutputLines(BATCH, strict=strict).error(1, b'"a"', answer)) == ("http_400", "m")
    answer = classify(400, {}, json.dumps({"error": {"code": said, "type": "BadRequestError"}}).encode(), now=0)
    assert read_error(OutputLines(BATCH, strict=strict).error(1, b'"a"', answer)).code == "BadRequestError"


@pytest.mark.parametrize("code", ["context_length_exceeded", "content-filter", "vllm.errors:TooLong", "E42"])
def test_a_code_of_an_engine_is_counted_as_it_is(code: str) -> None:
    answer = classify(400, {}, json.dumps({"error": {"code": code, "message": "m"}}).encode(), now=0)
    assert read_error(LINES.error(1, b'"a"', answer)).code == code


async def test_a_shard_counts_what_is_committed_whoever_did_it(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    shard = ShardRef(REF, "c1", 3)
    log = ShardLog(store, shard, "000001-a")
    await log.load()
    log.add(7, "error", refused(7, "early"))
    await log.commit()
    log.add(8, "error", refused(8, "late"))
    early = ErrorCount(code="early", count=1, first_lines=[7], shard=3)
    assert log.committed_errors == [early]
    again = ShardLog(store, shard, "000002-a")
    await again.load()
    assert again.committed_errors == [early]
    again.add(9, "error", refused(9, "early"))
    result = await again.finish()
    assert result.errors == [ErrorCount(code="early", count=2, first_lines=[7, 9], shard=3)]
    found = await ShardLog(store, shard, "000003-a").load()  # of a workflow that was reset
    assert found
    assert found.errors == result.errors


async def test_a_running_batch_shows_a_message_that_is_committed_and_reads_it_once(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    catalog = Catalog(store)
    log = ShardLog(store, ShardRef(REF, "c1", 3), "000001-a")
    log.add(7, "error", refused(7, "early"))
    await log.commit()
    store.put(f"batches/{TENANT}/{BATCH}/cuts/c1", b"")
    summary = [*tally("early", first=7, shard=3).summary(), ErrorCount(code=OTHER, count=2, first_lines=[9], shard=3)]
    record = BatchRecord(spec=make_spec(), status=BatchStatus(error_summary=summary))
    messages = ErrorMessages(catalog)
    assert messages.of(record) == {"early": "why 7"}
    for key in list(store.list(f"batches/{TENANT}/{BATCH}/")):
        store.delete(key)
    assert messages.of(record) == {"early": "why 7"}
    assert ErrorMessages(catalog).of(record) == {}


async def test_the_final_record_keeps_a_message_of_each_code_that_temporal_never_saw(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    file_id = result_file_id(BATCH, "error")
    store.put(keys.content_key(TENANT, file_id), b"".join(refused(n, f"code-{n % 2}") for n in range(1, 6)))
    status = BatchStatus(
        outcome=BatchPhase.COMPLETED,
        counts=Counts(total=5, failed=5),
        error_file_id=file_id,
        error_summary=tally("code-1", "code-0", "code-1", "code-0", "code-1").summary(),
    )
    environment, _ = activity_environment()
    task = CloseBatchInput(spec=make_spec(), status=status)
    closed = await environment.run(CloseBatch(store, FakeRuns().runs).close_batch, task)
    assert "why" not in closed.model_dump_json()
    final = Catalog(store).get_final(REF)
    assert final
    assert ErrorMessages(Catalog(store)).of(final) == {"code-1": "why 1", "code-0": "why 2"}
