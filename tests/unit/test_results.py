"""Committed answers: the form of parts and shard objects, and the rule by which an answer counts."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.records import shard_keys
from activities.records.shard_keys import ShardRef
from activities.results import shard_log as results
from activities.results.records import RecordReader, encode_record
from activities.results.shard_log import ByteRange, Committed, RangeReader, ShardLog, Tries, find_result, look_up
from activities.store.local import LocalStore
from activities.store.object_store import ObjectNotFoundError, StoreError
from tests.fakes.worker import REF, ShakyStore, until
from workflows.error_summary import ErrorCount
from workflows.ids import ResultKind
from workflows.types import ShardResult, Usage

WHERE = ShardRef(REF, "c1", 0)


@pytest.fixture
def store(tmp_path: Path) -> ShakyStore:
    return ShakyStore(str(tmp_path))


def line_of(number: int, size: int = 0) -> bytes:
    return b'{"n":%d,"x":"%b"}\n' % (number, b"x" * size)


def name_of(number: int) -> str:
    return f"{number:06d}-test"


async def attempt(store: ShakyStore, number: int = 1) -> ShardLog:
    log = ShardLog(store, WHERE, name_of(number))
    assert await log.load() is None
    return log


def result_bytes(store: ShakyStore, number: int) -> bytes:
    return store.get(shard_keys.result_key(WHERE, name_of(number)))


def result_lines(store: ShakyStore, number: int) -> dict[int, bytes]:
    reader = RecordReader(iter([result_bytes(store, number)]))
    assert reader.shard_head()
    return {record.line: b"".join(reader.line()) for record in reader.records()}


def parts(store: ShakyStore) -> list[str]:
    return list(store.list(shard_keys.parts_prefix(WHERE)))


def committed(store: ShakyStore) -> Committed:
    found = look_up(store, WHERE)
    assert isinstance(found, Committed)
    return found


# The form

usages = st.builds(
    Usage,
    input_tokens=st.integers(0, 2**40),
    cached_tokens=st.integers(0, 9),
    output_tokens=st.integers(0, 9),
    reasoning_tokens=st.integers(0, 9),
)
kinds: st.SearchStrategy[ResultKind] = st.sampled_from(["output", "error"])
# Any bytes: what an engine says may look like a head line.
answers = st.one_of(st.binary(max_size=40), st.sampled_from([b"1 output 3 0 0 0 0\n", b"17 tried 2 1 0\n", b"\n"]))
records = st.lists(st.tuples(st.integers(1, 10**7), kinds, answers, usages), max_size=8)


def chunks(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The data cut anywhere, never into an empty chunk."""
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return (data[start:end] for start, end in pairwise(bounds))


@given(
    records,
    st.dictionaries(st.integers(1, 99), st.builds(Tries, *[st.integers(0, 9)] * 3), max_size=3),
    st.lists(st.integers(0, 9999)),
)
def test_records_read_back_as_they_were_written_in_whatever_chunks(
    written: list[tuple[int, ResultKind, bytes, Usage]], tried: dict[int, Tries], cuts: list[int]
) -> None:
    data = b"".join(encode_record(*record) for record in written)
    data += b"".join(b"%d tried %d %d %d\n" % (line, *tries) for line, tries in tried.items())
    reader = RecordReader(chunks(data, cuts))
    read: list[tuple[int, ResultKind, bytes, Usage]] = []
    for record in reader.records():
        read.append((record.line, record.kind, b"".join(reader.line()), record.usage))
        start = record.offset + len(record.head)
        assert data[record.offset : start] == record.head
        assert data[start : start + record.length] == read[-1][2]
    assert read == written
    assert reader.tried == tried


@given(records, st.lists(st.integers(0, 9999)))
def test_lines_that_nobody_takes_are_skipped(
    written: list[tuple[int, ResultKind, bytes, Usage]], cuts: list[int]
) -> None:
    data = b"shard 1 2 3 4 5 6\n" + b"".join(encode_record(*record) for record in written)
    reader = RecordReader(chunks(data, cuts))
    usage = Usage(input_tokens=3, cached_tokens=4, output_tokens=5, reasoning_tokens=6)
    assert reader.shard_head() == (1, 2, usage)
    assert [record.line for record in reader.records()] == [record[0] for record in written]


@pytest.mark.parametrize("missing", [1, 5])
def test_an_object_that_ends_too_early_is_a_fault_and_no_short_line(missing: int) -> None:
    data = encode_record(1, "output", b"0123456789\n")[:-missing]
    reader = RecordReader(iter([data]))
    next(reader.records())
    with pytest.raises(StoreError, match="too early"):
        b"".join(reader.line())
    with pytest.raises(StoreError, match="too early"):
        list(RecordReader(iter([data])).records())


# Commit and finish


async def test_answers_become_one_object_in_input_order_and_the_parts_go(store: ShakyStore) -> None:
    log = await attempt(store)
    usage = Usage(input_tokens=5, cached_tokens=1, output_tokens=2, reasoning_tokens=1)
    for number in (7, 3):
        log.add(number, "output", line_of(number), usage)
        await log.commit()
    log.add(5, "error", line_of(5))
    assert (log.done, log.committed, log.has_uncommitted) == (3, (2, 0), True)
    assert len(parts(store)) == 2

    result = await log.finish()

    total = Usage(input_tokens=10, cached_tokens=2, output_tokens=4, reasoning_tokens=2)
    errors = [ErrorCount(code="unknown", count=1, first_lines=[5], shard=0)]
    assert result == ShardResult(attempt=name_of(1), completed=2, failed=1, usage=total, errors=errors)
    assert list(result_lines(store, 1).items()) == [(n, line_of(n)) for n in (3, 5, 7)]
    assert parts(store) == []
    assert find_result(store, WHERE) == look_up(store, WHERE) == result.model_copy(update={"errors": []})


async def test_a_commit_without_news_writes_nothing(store: ShakyStore) -> None:
    log = await attempt(store)
    await log.commit()
    assert store.written == []
    assert find_result(store, WHERE) is None


async def test_a_later_attempt_takes_up_what_an_earlier_one_committed(store: ShakyStore) -> None:
    first = await attempt(store)
    first.add(2, "output", line_of(2), Usage(input_tokens=5))
    first.add(4, "error", line_of(4))
    first.note_tries(1, Tries(2, alone=1))
    first.note_tries(9, Tries(1))
    await first.commit()

    second = await attempt(store, 2)
    assert second.committed == (second.completed, second.failed) == (1, 1)
    assert [second.has(n) for n in (1, 2, 4)] == [False, True, True]
    assert not second.has_uncommitted
    assert second.tries(1) == Tries(2, alone=1)
    second.note_tries(1, Tries(3, ended=1))
    await second.commit()
    assert committed(store).tried == {1: Tries(3, 1, 1), 9: Tries(1)}

    third = await attempt(store, 3)
    third.add(1, "output", line_of(1), Usage(input_tokens=2))
    result = await third.finish()
    assert (result.attempt, result.completed, result.failed) == (name_of(3), 2, 1)
    assert result.usage == Usage(input_tokens=7)
    assert result_lines(store, 3) == {n: line_of(n) for n in (1, 2, 4)}
    assert parts(store) == []


async def test_a_finished_shard_is_adopted_of_whichever_attempt(store: ShakyStore) -> None:
    first = await attempt(store, 4)
    first.add(1, "output", line_of(1))
    result = await first.finish()
    assert await ShardLog(store, WHERE, name_of(5)).load() == result
    assert await ShardLog(store, WHERE, name_of(1)).load() == result  # a workflow that was reset


# Attempts that were thought dead


async def test_what_two_attempts_answered_counts_once_and_the_first_stays(store: ShakyStore) -> None:
    zombie, heir = await attempt(store, 1), await attempt(store, 2)
    zombie.add(1, "output", line_of(1), Usage(input_tokens=5))
    heir.add(1, "output", line_of(1, 9), Usage(input_tokens=7))
    heir.add(2, "output", line_of(2), Usage(input_tokens=1))
    await heir.commit()
    await zombie.commit()

    found = committed(store)
    place = found.ranges[1]
    assert b"".join(store.stream(place.key, place.offset, place.length)).endswith(line_of(1))
    third = await attempt(store, 3)
    result = await third.finish()
    assert (result.completed, result.usage.input_tokens) == (2, 6)


async def test_a_zombie_that_ends_late_takes_nothing_away(store: ShakyStore) -> None:
    zombie = await attempt(store, 1)
    zombie.add(1, "output", line_of(1))
    await zombie.commit()
    heir = await attempt(store, 2)
    zombie.add(2, "output", line_of(2))
    heir.add(2, "output", line_of(2, 5))
    result = await heir.finish()
    before = result_bytes(store, 2)

    late = await zombie.finish()

    assert late.attempt == name_of(1)
    assert result_bytes(store, 2) == before
    assert result_lines(store, 2) == {1: line_of(1), 2: line_of(2, 5)}
    assert result == ShardResult(attempt=name_of(2), completed=2, failed=0)


async def test_an_heir_whose_parts_vanish_adopts_the_faster_attempt(store: ShakyStore) -> None:
    first = await attempt(store, 1)
    first.add(1, "output", line_of(1))
    await first.commit()
    heir = await attempt(store, 2)
    first.add(2, "output", line_of(2))
    result = await first.finish()
    heir.add(2, "output", line_of(2, 5))
    assert await heir.finish() == result
    assert list(store.list(shard_keys.results_prefix(WHERE))) == [shard_keys.result_key(WHERE, name_of(1))]


async def test_parts_that_vanish_without_a_result_are_a_fault(store: ShakyStore) -> None:
    first = await attempt(store, 1)
    first.add(1, "output", line_of(1))
    await first.commit()
    heir = await attempt(store, 2)
    store.delete(parts(store)[0])
    with pytest.raises(ObjectNotFoundError):
        await heir.finish()


class FinishesMeanwhile(ShakyStore):
    """Another attempt finishes between the look at the list of parts and the reading of one."""

    other: ShardLog
    races = 1

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if self.races and "/parts/" in key:
            self.races -= 1
            self.other._finish()  # pyright: ignore[reportPrivateUsage] - as its thread would
        return super().stream(key, offset, length)


async def test_a_part_that_vanishes_under_a_reader_means_look_again(tmp_path: Path) -> None:
    store = FinishesMeanwhile(str(tmp_path))
    first = await attempt(store, 1)
    first.add(1, "output", line_of(1))
    await first.commit()
    store.other = first
    found = look_up(store, WHERE)
    assert isinstance(found, ShardResult)
    assert found.attempt == name_of(1)


def test_no_two_attempts_have_one_name() -> None:
    # A workflow that was reset counts the attempts of its activities anew.
    names = {shard_keys.attempt_name(1) for _ in range(100)}
    assert len(names) == 100
    assert sorted([shard_keys.attempt_name(10), shard_keys.attempt_name(9)])[0].startswith("000009-")


# Memory and failures


async def test_what_is_too_much_to_hold_is_read_back_as_it_was(
    store: ShakyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(number: int) -> tuple[ShardResult, bytes]:
        log = await attempt(store, number)
        for line in (5, 1, 4, 2, 3):
            log.add(line, "output", line_of(line, 300 * line), Usage(input_tokens=line))
            log.add(line + 10, "error", line_of(line + 10))
            if line != 3:  # the last stay uncommitted
                await log.commit()
        result = await log.finish()
        data = result_bytes(store, number)
        store.delete(shard_keys.result_key(WHERE, name_of(number)))
        return result, data

    held, held_bytes = await run(1)
    monkeypatch.setattr(results, "HOLD_BYTES", 700)
    spilled, spilled_bytes = await run(2)
    assert spilled_bytes == held_bytes
    assert spilled.model_copy(update={"attempt": name_of(1)}) == held
    assert parts(store) == []


async def test_answers_that_could_not_be_stored_stay_and_go_with_the_next_commit(store: ShakyStore) -> None:
    log = await attempt(store)
    log.add(1, "output", line_of(1))
    log.note_tries(2, Tries(1))
    store.down = True
    for _ in range(2):
        with pytest.raises(StoreError):
            await log.commit()
    assert (log.has_uncommitted, log.committed) == (True, (0, 0))
    log.add(3, "output", line_of(3))
    store.down = False
    await log.commit()
    assert (log.has_uncommitted, log.committed) == (False, (2, 0))
    found = committed(store)
    assert (sorted(found.records), found.tried) == ([1, 3], {2: Tries(1)})
    assert (await log.finish()).completed == 2


async def test_a_finish_that_could_not_be_stored_can_be_done_again(store: ShakyStore) -> None:
    log = await attempt(store)
    log.add(1, "output", line_of(1))
    store.down = True
    with pytest.raises(StoreError):
        await log.finish()
    store.down = False
    assert (await log.finish()).completed == 1
    assert result_lines(store, 1) == {1: line_of(1)}


async def test_a_cancelled_commit_and_the_one_after_it_lose_nothing_between_them(store: ShakyStore) -> None:
    # The thread of the first goes on after its cancel, and may end after the second.
    log = await attempt(store)
    log.add(1, "output", line_of(1))
    reached, go = threading.Event(), threading.Event()

    def hold(key: str) -> None:
        store.on_write = lambda key: None
        reached.set()
        assert go.wait(20)

    store.on_write = hold
    slow = asyncio.create_task(log.commit())
    await until(reached.is_set)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    log.add(2, "output", line_of(2))
    try:
        await log.commit()
        written = len(store.written)
    finally:
        go.set()
    await until(lambda: len(store.written) > written)
    assert sorted(committed(store).records) == [1, 2]


def test_what_is_read_back_costs_one_read_for_each_part(store: ShakyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "KEEP_BYTES", 300)
    content = {f"p/{number}": bytes([number]) * 100 for number in range(4)} | {"p/large": bytes(range(200))}
    for key, data in content.items():
        store.put(key, data)
    places = [ByteRange(key, offset, 10) for key in content for offset in range(0, len(content[key]), 10)]
    got: list[str] = []
    real = store.stream

    def stream(key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        got.append(key)
        return real(key, offset, length)

    monkeypatch.setattr(store, "stream", stream)
    reader = RangeReader(store, places)
    across = sorted(places, key=lambda place: (place.offset // 50, place.key))  # two rounds over all parts
    for place in across:
        assert b"".join(reader.read(place)) == content[place.key][place.offset : place.offset + 10]
    parts = [key for key in got if key != "p/large"]  # which is never kept
    assert parts == [f"p/{number}" for number in range(4)] * 2  # three are kept at the most
    store.delete("p/3", "p/0")
    assert b"".join(reader.read(ByteRange("p/3", 0, 10))) == content["p/3"][:10]
    with pytest.raises(ObjectNotFoundError):
        reader.read(ByteRange("p/0", 0, 10))


def test_of_a_large_object_only_what_is_wanted_is_read(store: ShakyStore) -> None:
    with store.writer("p/huge") as writer:
        for _ in range(20):
            writer.write(b"x" * (1 << 20))
        writer.commit()
    tracemalloc.start()
    try:
        for place in (ByteRange("p/huge", 10, 100), ByteRange("p/huge", 900_000, 100)):
            assert b"".join(RangeReader(store, [place]).read(place)) == b"x" * 100
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


async def test_a_finished_shard_keeps_no_answers_in_memory(tmp_path: Path) -> None:
    """What has run may stay, by a cycle of references, until the collector comes."""
    log = ShardLog(LocalStore(str(tmp_path)), WHERE, "0001")
    tracemalloc.start()
    try:
        log.add(1, "output", bytes(8 << 20))
        await log.finish()
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert not log.has_uncommitted
