"""Pages of committed results: each line once, in an order that outlives processes, from the first part to the files."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from activities import result_pages
from activities.records import keys, shard_keys
from activities.records.catalog import Catalog, FileRecord
from activities.records.shard_keys import ShardRef
from activities.result_pages import BadCursorError, Cursor, ResultPages, ResultsGoneError
from activities.results.output_lines import OutputLines, line_number
from activities.results.shard_log import ShardLog
from activities.store.object_store import ObjectNotFoundError
from tests.fakes.worker import BATCH, REF, TENANT, ShakyStore, make_spec
from workflows.ids import BatchRef, ResultKind, result_file_id
from workflows.types import BatchPhase, BatchRecord, BatchStatus, Counts, MissingReason

SHARDS, REQUESTS = 4, 10
LINES = SHARDS * REQUESTS


def line_of(number: int) -> bytes:
    return OutputLines(BATCH).missing(number, b'"r%d"' % number, MissingReason.FAILED)


def kind_of(number: int) -> ResultKind:
    return "error" if number % 7 == 0 else "output"


class Run:
    """A batch whose shards are run by attempts that come, die, and come back from the dead."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.store = ShakyStore(str(folder))
        self.catalog = Catalog(self.store)
        self.dice = dice
        self.attempts = 0
        self.logs: list[ShardLog] = []
        self.shard_of: dict[ShardLog, tuple[str, int]] = {}
        self.finished: set[tuple[str, int]] = set()

    def lines_of(self, cut: str, shard: int) -> list[int]:
        """The second cut has shards of half the size."""
        size = REQUESTS if cut == "c1" else REQUESTS // 2
        return list(range(shard * size + 1, (shard + 1) * size + 1))

    async def step(self, cut: str) -> None:
        """A little of the work on some shard."""
        shard = self.dice.randrange(SHARDS if cut == "c1" else 2 * SHARDS)
        if (cut, shard) in self.finished:
            return
        alive = [log for log in self.logs if self.shard_of[log] == (cut, shard)]
        if not alive or self.dice.random() < 0.2:  # another attempt, while the one before may not be dead
            self.attempts += 1
            log = ShardLog(self.store, ShardRef(REF, cut, shard), f"{self.attempts:06d}-x")
            assert await log.load() is None
            self.logs.append(log)
            self.shard_of[log] = (cut, shard)
            return
        log = self.dice.choice(alive)
        missing = [line for line in self.lines_of(cut, shard) if not log.has(line)]
        for line in self.dice.sample(missing, min(3, len(missing))):
            log.add(line, kind_of(line), line_of(line))
        if self.dice.random() < 0.7:
            await log.commit()
        if len(missing) <= 3:
            await log.finish()
            self.finished.add((cut, shard))
            self.logs = [log for log in self.logs if self.shard_of[log] != (cut, shard)]

    def end(self) -> None:
        """As the activities at the end of a batch do."""
        ids: dict[ResultKind, str] = {}
        for kind in ("output", "error"):
            content = b"".join(line_of(n) for n in range(1, LINES + 1) if kind_of(n) == kind)
            ids[kind] = result_file_id(BATCH, kind)
            self.store.put(keys.content_key(TENANT, ids[kind]), content)
            record = FileRecord(id=ids[kind], bytes=len(content), created_ms=1, filename="f", purpose="batch_output")
            self.catalog.save_file(TENANT, record)
        status = BatchStatus(
            phase=BatchPhase.COMPLETED,
            counts=Counts(total=LINES),
            output_file_id=ids["output"],
            error_file_id=ids["error"],
        )
        self.catalog.save_final(BatchRecord(spec=make_spec(), status=status))
        self.catalog.delete_leftovers(REF)


@pytest.mark.parametrize("seed", range(6))
async def test_whoever_follows_gets_each_line_once(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_pages, "ENTRY_LINES", 5)
    dice = random.Random(seed)
    run = Run(tmp_path, dice)
    apis = [ResultPages(run.store), ResultPages(run.store)]
    cursors, got, is_over = [Cursor()] * 3, [list[int]() for _ in range(3)], [False] * 3

    def follow(number: int) -> None:
        if dice.random() < 0.1:
            apis[dice.randrange(2)] = ResultPages(run.store)  # a process that was started anew
        api = dice.choice(apis)
        page = api.page(REF, Cursor.parse(str(cursors[number])), dice.choice([1, 3, 100]))
        assert all(line == line_of(line_number(line)) for line in page.lines)
        got[number] += map(line_number, page.lines)
        cursors[number], is_over[number] = page.cursor, page.is_last

    for step in range(250):
        await run.step("c1" if step < 50 else "c2")  # the workflow was reset, and its input cut otherwise
        if step % 3 == 0:
            follow(dice.randrange(2))  # the third comes after the end only
    assert got[0]
    assert got[1]
    assert not any(is_over)
    run.end()
    for number in range(3):
        while not is_over[number]:
            follow(number)
        assert sorted(got[number]) == list(range(1, LINES + 1))
        assert apis[0].page(REF, cursors[number], 5) == ([], cursors[number], True)
    common = min(place for place, _ in cursors[:2])
    assert got[0][:common] == got[1][:common] != got[2][:common]
    assert got[2] == list(range(1, LINES + 1))  # of a batch that has ended: in input order


async def committed(store: ShakyStore, shard: int = 0, count: int = REQUESTS) -> ShardLog:
    log = ShardLog(store, ShardRef(REF, "c1", shard), f"{shard:06d}-x")
    for line in range(1, count + 1):
        number = shard * REQUESTS + line
        log.add(number, kind_of(number), line_of(number))
    await log.commit()
    return log


async def test_what_is_not_committed_is_not_shown(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    log = await committed(store, count=2)
    log.add(3, "output", line_of(3))
    now = [100.0]
    pages = ResultPages(store, lambda: now[0])
    assert pages.page(REF, Cursor(), 100) == ([line_of(1), line_of(2)], Cursor(2), False)
    await log.commit()
    assert pages.page(REF, Cursor(2), 100).lines == []  # two looks at once would be one too many
    now[0] += 2 / result_pages.ENTRIES_A_SECOND
    assert pages.page(REF, Cursor(2), 100).lines == [line_of(3)]


async def test_a_page_that_is_read_while_the_batch_ends_is_one_of_its_files(tmp_path: Path) -> None:
    run = Run(tmp_path, random.Random(1))
    await committed(run.store)
    pages = ResultPages(run.store)
    assert len(pages.page(REF, Cursor(), 4).lines) == 4
    get_final, ended = Catalog.get_final, asyncio.Event()

    def ends_behind_it(self: Catalog, ref: BatchRef) -> BatchRecord | None:
        final = get_final(self, ref)
        if not ended.is_set():
            ended.set()
            run.end()
        return final

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "get_final", ends_behind_it)
        page = pages.page(REF, Cursor(4), 100)
    assert list(map(line_number, page.lines)) == list(range(5, LINES + 1))
    assert page.is_last


async def test_pages_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_pages, "PAGE_BYTES", 2 * len(line_of(1)))
    run = Run(tmp_path, random.Random(1))
    await committed(run.store)
    pages = ResultPages(run.store)
    assert len(pages.page(REF, Cursor(), 100).lines) == 2
    run.end()
    assert len(pages.page(REF, Cursor(), 100).lines) == 2


async def test_cursors_that_are_none(tmp_path: Path) -> None:
    run = Run(tmp_path, random.Random(1))
    await committed(run.store)
    pages = ResultPages(run.store)
    for text in ("", "x", "-1", "1-2", "1-2-3-4", "123456789", "1 "):
        with pytest.raises(BadCursorError):
            Cursor.parse(text)
    for cursor in (Cursor(REQUESTS + 1), Cursor(0, (0, 0))):
        with pytest.raises(BadCursorError):
            pages.page(REF, cursor, 10)
    run.end()
    for cursor in (Cursor(0, (1, 0)), Cursor(0, (0, 10**9))):
        with pytest.raises(BadCursorError):
            pages.page(REF, cursor, 10)


async def test_results_that_were_deleted(tmp_path: Path) -> None:
    run = Run(tmp_path, random.Random(1))
    run.end()
    run.catalog.delete_file(TENANT, result_file_id(BATCH, "error"))
    with pytest.raises(ResultsGoneError):
        ResultPages(run.store).page(REF, Cursor(), 10)


async def test_answers_of_a_batch_whose_files_could_not_be_written(tmp_path: Path) -> None:
    run = Run(tmp_path, random.Random(1))
    await committed(run.store)
    run.catalog.save_final(BatchRecord(spec=make_spec(), status=BatchStatus(phase=BatchPhase.FAILED)))
    pages = ResultPages(run.store)
    page = pages.page(REF, Cursor(), 10)
    assert (list(map(line_number, page.lines)), page.is_last) == (list(range(1, REQUESTS + 1)), True)
    run.catalog.delete_leftovers(REF)  # as the janitor does after a time
    with pytest.raises(ResultsGoneError):
        pages.page(REF, Cursor(), 10)


async def test_lines_of_the_output_file_alone(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    await committed(store)
    await committed(store, shard=1)
    pages = ResultPages(store)
    assert (pages.count(REF, "output"), pages.count(REF, "error")) == (18, 2)

    def behind(kind: ResultKind, count: int) -> list[int]:
        page = pages.page(REF, pages.behind(REF, kind, count), 100, kind)
        return list(map(line_number, page.lines))

    assert behind("output", 8) == [10, 11, 12, 13, 15, 16, 17, 18, 19, 20]
    assert (behind("error", 0), behind("error", 1), behind("error", 2)) == ([7, 14], [14], [])
    assert behind("output", 18) == []


async def test_nothing_is_read_twice_to_find_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ShakyStore(str(tmp_path))
    await committed(store)
    pages = ResultPages(store)
    pages.page(REF, Cursor(), 100)
    streamed: list[str] = []
    stream = store.stream

    def counted(key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        streamed.append(key)
        return stream(key, offset, length)

    monkeypatch.setattr(store, "stream", counted)
    for _ in range(3):
        assert pages.page(REF, Cursor(REQUESTS), 100).lines == []
    assert streamed == []
    with pytest.raises(ObjectNotFoundError):
        store.get(shard_keys.result_key(ShardRef(REF, "c1", 0), "000000-x"))
