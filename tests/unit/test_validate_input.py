"""The activity that reads the input once: what fails a batch, and how the input is cut into shards."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import json
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.exceptions import ApplicationError

from activities.input import scan as scan_rules
from activities.input.jsonl import read_lines
from activities.input.scan import LABEL_LENGTH, MAX_ERRORS, MAX_SHARD_BYTES, Scanned, scan_input
from activities.input.scan_process import ScanProcesses
from activities.records import keys
from activities.records.catalog import Catalog
from activities.records.sending_order import ENTRY_BYTES, LinePlace, unpack_places
from activities.store.local import LocalStore
from activities.store.object_store import StoreError
from activities.upstreams.config import Order, Upstream
from activities.upstreams.routes import ModelRoutes
from activities.validate_input import ValidateInput
from tests.fakes.worker import (
    BATCH,
    FILE,
    ONLY_UPSTREAM,
    REF,
    TENANT,
    FakeEngine,
    activity_environment,
    make_spec,
    request_line,
    routes,
    save_input,
)
from workflows.types import BatchError, BatchPhase, BatchRecord, BatchSpec, BatchStatus, Counts, Shard, ValidateResult


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


async def validate(
    store: LocalStore, spec: BatchSpec | None = None, engine: FakeEngine | None = None
) -> ValidateResult:
    activity = ValidateInput(store, [(engine or FakeEngine()).client], ScanProcesses(1))
    environment, _ = activity_environment()
    return await environment.run(activity.validate_input, spec or make_spec())


def lines(count: int, **body: Any) -> bytes:
    return b"".join(request_line(number, **body) for number in range(1, count + 1))


MAX_LINE_BYTES = 64 << 20


def scan(content: bytes, known_models: frozenset[str] | None = None, **spec: Any) -> ValidateResult:
    chunks = (content[start : start + 1000] for start in range(0, len(content), 1000))
    return scan_input(chunks, make_spec(**spec), routes(known_models)).result


def only_error(result: ValidateResult) -> BatchError:
    assert (len(result.errors), result.errors_total, result.shards) == (1, 1, [])
    return result.errors[0]


# A good input


async def test_a_good_input_becomes_shards_a_private_copy_and_a_record(store: LocalStore) -> None:
    content = b"\n" + lines(3)
    save_input(store, content)
    before = int(time.time())
    result = await validate(store)

    assert (result.errors, result.total, result.model) == ([], 3, "m")
    assert result.finished_at >= before
    assert result.labels == ["r1", "r2", "r3"]
    assert [shard.first_line for shard in result.shards] == [2, 3, 4]
    files = Catalog(store)
    assert files.cuts(REF) == [result.cut]
    assert files.get_cut(REF, result.cut).shards == result.shards
    record = files.get_batch(REF)
    assert (record.status.phase, record.status.counts) == (BatchPhase.IN_PROGRESS, Counts(total=3))
    assert record.status.in_progress_at == result.finished_at
    assert [batch.spec.batch_id for batch in files.list_batches(TENANT, after=None)] == [BATCH]

    files.delete_file(TENANT, FILE)  # the batch goes on
    assert store.get(keys.input_key(REF)) == content


async def test_doing_it_again_gives_the_same(store: LocalStore) -> None:
    save_input(store, lines(3))
    first, second = await validate(store), await validate(store)
    assert second.shards == first.shards


async def test_the_models_of_the_upstream_are_asked_for_only_where_they_matter(store: LocalStore) -> None:
    save_input(store, lines(2))
    engine = FakeEngine(models=frozenset({"other"}))
    result = await validate(store, engine=engine)
    assert ([error.code for error in result.errors], result.errors_total) == (["model_not_found"] * 2, 2)
    assert not (await validate(store, make_spec(unknown_model="line"), engine)).errors
    assert not (await validate(store, engine=FakeEngine(models=None))).errors  # it cannot be asked


# The file


async def test_a_file_that_is_not_there(store: LocalStore) -> None:
    error = only_error(await validate(store))
    message = f"Cannot find file {FILE}, or organization {TENANT} does not have access to it."
    assert error == BatchError(code="invalid_request", message=message, param="file_id")
    assert Catalog(store).get_batch(REF).status.phase is BatchPhase.VALIDATING


@pytest.mark.parametrize("file_id", ["../x", "file-../..", "", "a/b", "x" * 5000])
async def test_a_file_id_that_cannot_be(store: LocalStore, file_id: str) -> None:
    error = only_error(await validate(store, make_spec(input_file_id=file_id)))
    assert (error.code, error.param) == ("invalid_request", "file_id")
    assert len(error.message) < 250


async def test_the_own_copy_counts_once_it_is_made(store: LocalStore) -> None:
    save_input(store, lines(3))
    first = await validate(store)
    save_input(store, lines(5))
    assert (await validate(store)).cut == first.cut
    Catalog(store).delete_file(TENANT, FILE)
    assert (await validate(store)).cut == first.cut


async def test_a_batch_that_has_ended_is_not_checked_again(store: LocalStore) -> None:
    status = BatchStatus(phase=BatchPhase.COMPLETED, counts=Counts(total=3, completed=3))
    Catalog(store).save_final(BatchRecord(spec=make_spec(), status=status))
    result = await validate(store)
    assert (result.has_ended, result.errors, result.shards) == (True, [], [])


async def test_a_file_that_has_expired(store: LocalStore) -> None:
    save_input(store, lines(1), expires_at=int(time.time()) - 1)
    assert "Cannot find file" in only_error(await validate(store)).message


async def test_a_file_of_another_purpose(store: LocalStore) -> None:
    save_input(store, lines(1), purpose="user_data")
    error = only_error(await validate(store))
    assert (error.code, error.param) == ("invalid_request", "file_id")
    assert "'user_data'" in error.message


async def test_a_file_with_too_many_bytes(store: LocalStore) -> None:
    save_input(store, lines(1))
    error = only_error(await validate(store, make_spec(max_input_bytes=10)))
    assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)
    assert "batch input file is larger than the 10 maximum for the m" in error.message


async def test_a_file_that_is_deleted_between_two_looks(store: LocalStore) -> None:
    save_input(store, lines(1))
    store.delete(keys.content_key(TENANT, FILE))
    assert "Cannot find file" in only_error(await validate(store)).message


async def test_a_store_that_is_away_fails_the_attempt_and_not_the_batch(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_input(store, lines(1))

    def away(source: str, target: str) -> None:
        raise StoreError("away")

    monkeypatch.setattr(store, "copy", away)
    with pytest.raises(StoreError):
        await validate(store)


async def test_cancel_stops_the_reading(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save_input(store, lines(1))

    def endless(*arguments: Any) -> Iterator[bytes]:
        while True:
            yield b"\n" * 1000

    monkeypatch.setattr(store, "stream", endless)
    environment, beats = activity_environment()
    running = asyncio.ensure_future(
        environment.run(ValidateInput(store, [FakeEngine().client], ScanProcesses(1)).validate_input, make_spec())
    )
    while not beats:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# The lines


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n\n"])
def test_an_empty_input(content: bytes) -> None:
    error = only_error(scan(content))
    message = "The input file is empty. Please ensure that the batch contains at least one request."
    assert error == BatchError(code="empty_file", message=message)


def test_one_error_for_each_bad_line_in_order_with_physical_numbers() -> None:
    good = request_line(1)
    content = b"\xef\xbb\xbf\r\n" + b"bad\n" + good + b"\n  \n" + good + b"{}\r\n" + b"\xff\n" + b'{"custom_id":1}'
    errors = scan(content).errors
    assert [(error.line, error.code, error.param) for error in errors] == [
        (2, "invalid_json_line", None),
        (6, "duplicate_custom_id", "custom_id"),
        (7, "missing_required_parameter", "custom_id"),
        (8, "invalid_json_line", None),
        (9, "invalid_type", "custom_id"),
    ]


@pytest.mark.parametrize("extra", [0, 1, 5000])
def test_the_first_hundred_errors_and_how_many_there_are(extra: int) -> None:
    total = MAX_ERRORS + extra
    result = scan(b"bad\n" * total)
    assert (len(result.errors), result.errors_total) == (MAX_ERRORS, total)
    assert [error.line for error in result.errors] == list(range(1, MAX_ERRORS + 1))
    said = [error for error in result.errors if "are listed" in error.message]
    assert len(said) == (1 if extra else 0)
    if extra:
        assert f"(The first 100 of {total} errors are listed.)" in result.errors[-1].message
    assert len(result.model_dump_json()) < 50_000


def test_too_many_requests() -> None:
    assert not scan(lines(5), max_requests=5).errors
    error = only_error(scan(lines(6) + b"\n", max_requests=5))
    assert (error.code, error.line) == ("too_many_tasks", None)
    assert error.message == "The input file has more than 5 requests, the most that a batch may have."


def test_too_many_embedding_inputs() -> None:
    def embedding(number: int, inputs: int) -> bytes:
        body = {"model": "m", "input": ["x"] * inputs}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": body}
        return json.dumps(line).encode() + b"\n"

    spec: dict[str, Any] = {"endpoint": "/v1/embeddings", "max_requests": 10}
    assert not scan(embedding(1, 5) + embedding(2, 5), known_models=None, **spec).errors
    error = only_error(scan(embedding(1, 5) + embedding(2, 6), known_models=None, **spec))
    assert error.code == "too_many_tasks"
    assert "11 embedding inputs" in error.message


def test_a_line_that_is_too_large_is_not_held_and_refuses_nothing() -> None:
    def chunks() -> Iterator[bytes]:
        yield request_line(1) + b'{"custom_id":"long","x":"'
        for _ in range(20):
            yield b"x" * 1_000_000
        yield b'"}\n' + request_line(2)

    result, peak = traced(chunks(), max_line_bytes=2_000_000)
    assert (result.errors, result.total, result.labels) == ([], 3, ["r1", "long", "r2"])
    assert peak < 8_000_000


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (codecs.BOM_UTF16_LE + request_line(1).decode().encode("utf-16-le"), "UTF-16 (little endian)"),
        (codecs.BOM_UTF16_BE + request_line(1).decode().encode("utf-16-be"), "UTF-16 (big endian)"),
        (request_line(1).decode().encode("utf-16-le"), "UTF-16 (little endian)"),
        (request_line(1).decode().encode("utf-16-be"), "UTF-16 (big endian)"),
        (request_line(1).decode().encode("utf-32"), "UTF-32"),
        (request_line(1).decode().encode("utf-32-be"), "UTF-32"),
        (gzip.compress(request_line(1)), "gzip"),
        (b"PK\x03\x04" + bytes(99), "ZIP"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "Zstandard"),
        (b"[\n" + request_line(1) + b"]\n", "JSON array"),
        (b'\n{\r\n  "custom_id": "a"\r\n}\n', "pretty-printed"),
        (request_line(1).decode().encode("cp1252") * 300, "cp1252"),
        (request_line(1) + b"\xef\xbb\xbf" + request_line(2) + b"\xef\xbb\xbf" + request_line(3), "mark"),
    ],
    ids=range(13),
)
def test_a_wrong_encoding_is_one_error(content: bytes, names: str) -> None:
    error = only_error(scan(content))
    assert error.code == "invalid_json_line"
    assert names in error.message
    assert "UTF-8" in error.message


def traced(chunks: Iterator[bytes], **spec: Any) -> tuple[ValidateResult, int]:
    tracemalloc.start()
    try:
        result = scan_input(chunks, make_spec(**spec), routes()).result
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_bytes() -> None:
    text = "x" * 50_000

    def chunks() -> Iterator[bytes]:
        for number in range(2000):  # a hundred megabytes
            yield request_line(number, text=text)

    result, peak = traced(chunks())
    assert (result.total, len(result.shards)) == (2000, 63)
    assert peak < 4_000_000


# Shards


def cut(count: int, content: bytes | None = None) -> list[Shard]:
    return scan(content or lines(count)).shards


@pytest.mark.parametrize(
    ("requests", "shards", "size"),
    [
        (1, 1, 1),
        (50, 50, 1),
        (51, 2, 32),
        (5000, 157, 32),
        (5001, 21, 250),
        (150_000, 501, 300),
    ],
)
def test_how_many_requests_share_a_shard(requests: int, shards: int, size: int) -> None:
    result = scan(lines(requests), max_requests=200_000)
    assert (len(result.shards), max(shard.requests for shard in result.shards), result.total) == (
        shards,
        size,
        requests,
    )
    assert sum(shard.requests for shard in result.shards) == requests
    # The first takes a queue in which batches take turns.
    assert result.shards[0].requests <= 32
    assert bool(result.labels) == (requests <= 5000)
    assert len(result.model_dump_json()) < 200_000  # far below what Temporal takes


def test_a_shard_ends_at_16_mib() -> None:
    text = "x" * 1_000_000
    shards = cut(5001, b"".join(request_line(n, text=text if n <= 40 else "") for n in range(1, 5002)))
    assert [shard.requests for shard in shards[:3]] == [16, 16, 250]
    assert all(shard.length <= MAX_SHARD_BYTES for shard in shards)


def test_a_request_larger_than_a_shard_has_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_rules, "MAX_SHARD_BYTES", 1000)
    content = b"".join(request_line(n, text="x" * (5000 if n in (2, 600) else 0)) for n in range(1, 601))
    shards = cut(600, content)
    # With so many bytes in sum the limit is a five-hundredth of them, so that there are never too many shards.
    assert [shard.requests for shard in shards[:2]] == [1, 1]
    assert shards[-1].requests == 1
    assert len(shards) <= 600


def test_labels_are_cut() -> None:
    result = scan(request_line(1, custom_id="é" * 5000))
    assert result.labels == ["é" * LABEL_LENGTH]


def test_the_label_of_a_group_says_which_lines_it_holds() -> None:
    result = scan(b"\n" + lines(70))
    assert result.labels == ["lines 2–33: r1 … r32", "lines 34–65: r33 … r64", "lines 66–71: r65 … r70"]


ends = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n  \n\n"])


@given(st.lists(st.tuples(st.integers(0, 400), ends), min_size=1, max_size=30), st.booleans(), st.integers(1, 4))
def test_shards_hold_every_request_once_and_in_order(
    shape: list[tuple[int, bytes]], last_end: bool, single: int
) -> None:
    content = b"\xef\xbb\xbf\n" + b"".join(
        request_line(number, text="x" * size).rstrip() + end for number, (size, end) in enumerate(shape)
    )
    if not last_end:
        content = content.rstrip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_rules, "SINGLE_REQUESTS", single)
        patch.setattr(scan_rules, "GROUP_REQUESTS", 4)
        patch.setattr(scan_rules, "MAX_SHARD_BYTES", 900)
        shards = cut(0, content)
    reference = [line for line in read_lines([content], MAX_LINE_BYTES) if line.data]
    found: list[tuple[int, bytes | None]] = []
    for shard, following in zip(
        shards, [*shards[1:], Shard(reference[-1].offset + reference[-1].length, 0, 0, 0)], strict=True
    ):
        assert shard.offset + shard.length == following.offset
        piece = content[shard.offset : shard.offset + shard.length]
        inside = [line for line in read_lines([piece], MAX_LINE_BYTES, first_line=shard.first_line) if line.data]
        assert len(inside) == shard.requests <= 4
        found += [(line.number, line.data) for line in inside]
    assert found == [(line.number, line.data) for line in reference]


# Several upstreams


TWO_UPSTREAMS = [Upstream(name=name, urls=("http://e/v1",), models=(name,)) for name in ("a", "b", "c")]
TWO = ModelRoutes(TWO_UPSTREAMS, [None] * 3)


def mixed(*models: str) -> bytes:
    return b"".join(request_line(number, model=model) for number, model in enumerate(models, 1))


def sent_lines(scanned: Scanned) -> list[list[LinePlace]]:
    """Where the requests of each shard are, in a batch that has a sending order."""
    places = unpack_places(scanned.order)
    first = [shard.offset // ENTRY_BYTES for shard in scanned.result.shards]
    return [places[start : start + shard.requests] for start, shard in zip(first, scanned.result.shards, strict=True)]


def test_each_shard_is_for_one_upstream_and_each_request_in_one_shard() -> None:
    content = b"\n" + mixed(*["c", "a", "c", "c"] * 400)
    scanned = scan_input([content], make_spec(), TWO)
    result, cut = scanned.result, scanned.cut
    assert (result.upstreams, result.total, result.model, result.has_order) == (["a", "c"], 1600, None, True)
    assert cut
    assert (cut.shards, bool(cut.order)) == (result.shards, True)
    assert [shard.first_line for shard in result.shards] == sorted(shard.first_line for shard in result.shards)
    assert sum(shard.requests for shard in result.shards) == 1600
    assert sum(shard.length for shard in result.shards) == len(content) - 1
    seen: list[int] = []
    for shard, places in zip(result.shards, sent_lines(scanned), strict=True):
        assert (shard.requests <= 100, shard.first_line) == (True, places[0].line)
        for place in places:
            line = json.loads(content[place.offset : place.offset + place.length])
            assert line["body"]["model"] == result.upstreams[shard.upstream]
            assert line["custom_id"] == f"r{place.line - 1}"
            seen.append(place.line)
    assert sorted(seen) == list(range(2, 1602))


def test_upstreams_whose_requests_do_not_lie_across_each_other_need_no_order() -> None:
    scanned = scan_input([mixed(*["a"] * 100, *["c"] * 100)], make_spec(), TWO)
    assert (scanned.order, scanned.result.has_order, scanned.result.upstreams) == (b"", False, ["a", "c"])
    assert {shard.upstream for shard in scanned.result.shards} == {0, 1}


# By prefix


def with_order(order: Order) -> ModelRoutes:
    return ModelRoutes([ONLY_UPSTREAM.model_copy(update={"order": order})], [None])


def prompts(numbers: Iterable[int], prefixes: int) -> bytes:
    """Requests that take turns between so many long prefixes, each with a question of its own."""
    return b"".join(
        request_line(n, messages=[{"role": "user", "content": f"{n % prefixes} " * 500 + f"question {n}"}])
        for n in numbers
    )


ALL: Final = range(600)
BY_PREFIX: Final = sorted(ALL, key=lambda n: n % 30)


@pytest.mark.parametrize("order", ["auto", "prefix"])
def test_requests_that_begin_alike_are_sent_one_after_the_other(order: Order) -> None:
    scanned = scan_input([prompts(ALL, 30)], make_spec(), with_order(order))
    assert scanned.result.has_order
    sent = [place.line - 1 for places in sent_lines(scanned) for place in places]
    assert sorted(sent) == list(range(600))
    assert sent == BY_PREFIX
    first, second, *_ = scanned.result.labels
    assert first == f"lines 1…{sent[31] + 1}: r0 … r{sent[31]}"
    assert second.startswith(f"lines {sent[32] + 1}…")
    again = scan_input([prompts(ALL, 30)], make_spec(), with_order(order))
    assert (again.cut, again.order) == (scanned.cut, scanned.order)


@pytest.mark.parametrize(
    ("order", "content"),
    [
        ("input", prompts(ALL, 30)),
        ("auto", prompts(ALL, 1)),
        ("prefix", prompts(ALL, 1)),
        ("auto", prompts(ALL, 600)),
        ("prefix", prompts(ALL, 600)),
        ("auto", prompts(range(50), 5)),
        ("auto", prompts(BY_PREFIX, 30)),
        ("prefix", prompts(BY_PREFIX, 30)),
        ("auto", lines(600)),
    ],
    ids=["off", "one", "one?", "none in common", "none in common?", "few", "sorted", "sorted?", "short"],
)
def test_where_another_order_brings_nothing_the_input_is_sent_as_it_is(order: Order, content: bytes) -> None:
    scanned = scan_input([content], make_spec(), with_order(order))
    assert (scanned.result.errors, scanned.order, scanned.result.has_order) == ([], b"", False)


def test_each_upstream_has_an_order_of_its_own() -> None:
    upstreams = [
        Upstream(name="a", urls=("http://e/v1",), models=("a",), order="prefix"),
        Upstream(name="b", urls=("http://e/v1",), models=("b",), order="input"),
    ]
    content = b"".join(
        request_line(n, model="ab"[n % 2], messages=[{"role": "user", "content": f"{n % 6} " * 500}])
        for n in range(120)
    )
    scanned = scan_input([content], make_spec(), ModelRoutes(upstreams, [None, None]))
    by_upstream: dict[int, list[int]] = {0: [], 1: []}
    for shard, places in zip(scanned.result.shards, sent_lines(scanned), strict=True):
        by_upstream[shard.upstream] += [place.line - 1 for place in places]
    assert by_upstream[0] == [n for rest in (0, 2, 4) for n in range(rest, 120, 6)]
    assert by_upstream[1] == list(range(1, 120, 2))
    assert [shard.upstream for shard in scanned.result.shards] == [0, 1, 0, 1]


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_prefixes_are_seen_wherever_a_prompt_may_begin(endpoint: str) -> None:
    def line(n: int) -> bytes:
        text = f"{n % 3} " * 500
        bodies: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": {"tools": [{"name": text}], "messages": [{"role": "user", "content": f"q {n}"}]},
            "/v1/completions": {"prompt": text + f"q {n}"},
            "/v1/responses": {"input": f"q {n}", "instructions": text},
            "/v1/messages": {"messages": [], "system": text, "max_tokens": 5},
        }
        body = bodies[endpoint]
        request = {"custom_id": f"r{n}", "method": "POST", "url": endpoint, "body": {"model": "m", **body}}
        return json.dumps(request).encode() + b"\n"

    scanned = scan_input([b"".join(map(line, range(90)))], make_spec(endpoint=endpoint), with_order("auto"))
    sent = [(place.line - 1) % 3 for places in sent_lines(scanned) for place in places]
    assert sent == sorted(sent)


def test_large_inputs_for_many_upstreams_are_not_too_many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_rules, "MAX_SHARD_BYTES", 1000)
    monkeypatch.setattr(scan_rules, "MAX_SHARDS", 20)
    result = scan_input([mixed(*["a", "b", "c"] * 400)], make_spec(), TWO).result
    assert len(result.shards) <= 2 * 20 + 3


def test_single_requests_are_shards_in_input_order() -> None:
    result = scan_input([mixed("a", "b", "a")], make_spec(), TWO).result
    assert not result.has_order
    assert [(shard.first_line, shard.requests, shard.upstream) for shard in result.shards] == [
        (1, 1, 0),
        (2, 1, 1),
        (3, 1, 0),
    ]
    assert result.labels == ["r1", "r2", "r3"]


def test_a_batch_for_one_of_several_is_not_mixed() -> None:
    result = scan_input([mixed("b", "b")], make_spec(), TWO).result
    assert (result.upstreams, result.model) == (["b"], "b")
    assert {shard.upstream for shard in result.shards} == {0}


def test_an_unknown_model_that_may_pass_goes_to_the_first_that_takes_any() -> None:
    any_model = ModelRoutes([TWO_UPSTREAMS[0], Upstream(name="any", urls=("http://e/v1",))], [None, frozenset({"x"})])
    result = scan_input([mixed("z")], make_spec(unknown_model="line"), any_model).result
    assert (result.errors, result.upstreams) == ([], ["any"])
    refused = scan_input([mixed("z")], make_spec(), any_model).result
    assert [error.code for error in refused.errors] == ["model_not_found"]


def test_what_the_engine_would_refuse_is_refused_here() -> None:
    nim = ModelRoutes(
        [Upstream(name="n", urls=("http://e/v1",), dialect="nim"), TWO_UPSTREAMS[1]], [frozenset({"m"}), None]
    )
    good = [request_line(1, top_k=5), request_line(2, top_k=-1), request_line(3, model="b", top_k=0)]
    assert not scan_input(good, make_spec(), nim).result.errors
    result = scan_input([*good, request_line(4, top_k=0)], make_spec(), nim).result
    assert [(error.code, error.param, error.line) for error in result.errors] == [("invalid_value", "body.top_k", 4)]


async def test_engines_that_could_tell_whose_a_model_is_are_waited_for(store: LocalStore) -> None:
    save_input(store, lines(2))
    engines = [FakeEngine(upstream=Upstream(name=name, urls=("http://10.0.0.1/v1",))) for name in ("x", "y")]
    activity = ValidateInput(store, [engine.client for engine in engines], ScanProcesses(1))
    for attempt, seconds in ((1, 5), (2, 10), (100, 30)):
        environment, _ = activity_environment(attempt)
        with pytest.raises(ApplicationError, match=r'upstream "x" .* or upstream "y"') as caught:
            await environment.run(activity.validate_input, make_spec())
        assert not caught.value.non_retryable
        assert caught.value.next_retry_delay == timedelta(seconds=seconds)
    engines[1].models = frozenset({"m"})
    result = await environment.run(activity.validate_input, make_spec())
    assert (result.errors, result.upstreams) == ([], ["y"])
