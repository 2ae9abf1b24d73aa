"""What the store holds and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from activities.records import keys, shard_keys
from activities.records.catalog import Catalog, FileRecord
from activities.records.cuts import Cut
from activities.records.sending_order import ENTRY_BYTES, LinePlace, joined, pack_places
from activities.records.shard_keys import ShardRef
from activities.store.local import LocalStore
from activities.store.object_store import ObjectNotFoundError, StoreError
from tests.fakes.worker import BATCH, FILE, REF, TENANT, ShakyStore, make_spec, save_input
from workflows.ids import BatchRef
from workflows.types import BatchPhase, BatchRecord, BatchStatus, Shard

SHARD = ShardRef(REF, "c1", 3)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


@pytest.fixture
def files(store: LocalStore) -> Catalog:
    return Catalog(store)


def test_a_file_comes_and_goes(files: Catalog, store: LocalStore) -> None:
    record = save_input(store, b"x")
    assert files.get_file(TENANT, FILE) == record
    assert list(files.list_files(TENANT, after=None)) == [record]
    files.delete_file(TENANT, FILE)
    with pytest.raises(ObjectNotFoundError):
        files.get_file(TENANT, FILE)
    with pytest.raises(ObjectNotFoundError):
        files.delete_file(TENANT, FILE)
    assert list(files.list_files(TENANT, after=None)) == []
    assert list(store.list("index/")) == []
    assert list(store.list("files/")) == [f"files/{TENANT}/{FILE}/deleted"]


@pytest.mark.parametrize("file_id", ["", "..", "a/b", "../../x", "a\0", "x" * 65, "é", "a b", "file-1\n"])
def test_an_id_that_cannot_be_is_not_found(files: Catalog, file_id: str) -> None:
    for call in (files.get_file, files.delete_file):
        with pytest.raises(ObjectNotFoundError):
            call(TENANT, file_id)
    with pytest.raises(ObjectNotFoundError):
        files.get_batch(BatchRef(TENANT, file_id))
    with pytest.raises(ObjectNotFoundError):
        keys.content_key(TENANT, file_id)


def test_tenants_do_not_see_each_other(files: Catalog, store: LocalStore) -> None:
    save_input(store, b"x")
    with pytest.raises(ObjectNotFoundError):
        files.get_file("other", FILE)
    assert list(files.list_files("other", after=None)) == []


def make_files(files: Catalog, times: list[int]) -> list[FileRecord]:
    records = [
        FileRecord(id=f"file-{place}", bytes=0, created_ms=at, filename="f", purpose="batch")
        for place, at in enumerate(times)
    ]
    for record in records:
        files.save_file(TENANT, record)
    return records


def test_lists_are_newest_first_by_milliseconds(files: Catalog) -> None:
    base = 1_700_000_000_000
    times = [base + 5, base, base + 1000, base + 1, base + 999]
    make_files(files, times)
    newest_first = [record.created_ms for record in files.list_files(TENANT, after=None)]
    assert newest_first == sorted(times, reverse=True)
    oldest_first = [record.created_ms for record in files.list_files(TENANT, after=None, ascending=True)]
    assert oldest_first == sorted(times)


@pytest.mark.parametrize("ascending", [False, True])
def test_paging_sees_each_once_even_within_one_millisecond(files: Catalog, ascending: bool) -> None:
    make_files(files, [5, 5, 5, 7, 7, 1, 1])
    whole = list(files.list_files(TENANT, after=None, ascending=ascending))
    seen: list[FileRecord] = []
    while page := list(files.list_files(TENANT, after=seen[-1].index_entry if seen else None, ascending=ascending))[:2]:
        seen += page
    assert seen == whole
    assert len(seen) == 7


def test_paging_goes_on_behind_a_file_that_is_gone(files: Catalog) -> None:
    records = make_files(files, [1, 2, 3, 4])
    files.delete_file(TENANT, "file-2")
    assert [record.id for record in files.list_files(TENANT, after=records[2].index_entry)] == ["file-1", "file-0"]


def test_a_file_without_a_record_is_not_listed(files: Catalog, store: LocalStore) -> None:
    make_files(files, [1, 2])
    store.delete(f"files/{TENANT}/file-1/object.json")  # a crash in the middle of a delete
    assert [record.id for record in files.list_files(TENANT, after=None)] == ["file-0"]


def test_the_newest_record_of_a_batch_answers(files: Catalog) -> None:
    spec = make_spec()
    files.create_batch(spec)
    assert files.get_batch(REF) == BatchRecord(spec=spec, status=BatchStatus())
    assert files.get_final(REF) is None
    running = BatchRecord(spec=spec, status=BatchStatus(phase=BatchPhase.IN_PROGRESS))
    final = BatchRecord(spec=spec, status=BatchStatus(phase=BatchPhase.COMPLETED))
    files.save_running(running)
    assert files.get_batch(REF) == running
    files.save_final(final)
    files.save_running(running)  # late writers
    files.create_batch(spec)
    assert files.get_batch(REF) == files.get_final(REF) == final
    assert [record.status.phase for record in files.list_batches(TENANT, after=None)] == [BatchPhase.COMPLETED]


def test_batches_page_as_files_do(files: Catalog) -> None:
    for number, at in enumerate([3, 1, 2]):
        files.create_batch(make_spec(batch_id=f"batch_{number}", created_ms=at))
    listed = list(files.list_batches(TENANT, after=None))
    assert [record.spec.created_ms for record in listed] == [3, 2, 1]
    assert list(files.list_batches(TENANT, after=files.batch_entry(listed[0].spec.ref))) == listed[1:]
    assert list(files.list_batches(TENANT, after=files.batch_entry(listed[1].spec.ref), ascending=True)) == listed[:1]


def test_cuts_read_back(files: Catalog) -> None:
    shards = [Shard(0, 10, 1, 2), Shard(10, 5, 4, 1)]
    cut = Cut("i", "l", shards, ["a", "b"])
    other = cut._replace(shards=shards[:1])
    for one in (cut, other):
        files.save_cut(REF, one)
        assert files.get_cut(REF, one.digest) == one
    assert files.cuts(REF) == sorted([cut.digest, other.digest])
    assert cut.total == 3


def test_the_sending_order_of_a_cut_reads_back_shard_by_shard(files: Catalog, store: LocalStore) -> None:
    places = [LinePlace(20, 5, 3), LinePlace(2**40, 2**33, 2**34), LinePlace(0, 20, 1)]
    cut = Cut("i", "l", [], ["a"], order="digest")
    files.save_cut(REF, cut, pack_places(places, len(places)))
    for first, count in ((0, 3), (0, 2), (2, 1)):
        shard = Shard(first * ENTRY_BYTES, 1, 1, count)
        assert files.get_places(REF, cut.digest, shard) == places[first : first + count]
    assert files.cuts(REF) == [cut.digest]


def test_requests_that_touch_each_other_are_read_at_once() -> None:
    places = [LinePlace(0, 5, 1), LinePlace(5, 5, 2), LinePlace(10, 1, 9), LinePlace(12, 3, 11), LinePlace(9, 3, 10)]
    assert list(joined(places)) == [LinePlace(0, 11, 1), LinePlace(12, 3, 11), LinePlace(9, 3, 10)]
    assert list(joined([])) == []


def test_leftovers_go_and_the_records_stay(files: Catalog, store: LocalStore) -> None:
    spec = make_spec()
    files.create_batch(spec)
    files.save_final(BatchRecord(spec=spec, status=BatchStatus()))
    files.save_cut(REF, Cut("", "", [], []), b"order")
    for key in (
        keys.input_key(REF),
        shard_keys.part_key(SHARD, "000001-a", 0),
        shard_keys.result_key(SHARD, "000001-a"),
    ):
        store.put(key, b"x")
    files.delete_leftovers(REF)
    files.delete_leftovers(REF)
    prefix = f"batches/{TENANT}/{BATCH}/"
    assert list(store.list(prefix)) == [f"{prefix}created.json", f"{prefix}record.json"]


def test_parts_and_results_sort_by_shard_and_attempt() -> None:
    names = [shard_keys.attempt_name(number) for number in (1, 2, 10, 100_000)]
    assert names == sorted(names)
    keys = [shard_keys.part_key(SHARD, name, number) for name in names for number in (0, 9, 10, 11)]
    assert keys == sorted(keys)
    assert all(key.startswith(shard_keys.parts_prefix(SHARD)) for key in keys)
    assert shard_keys.attempt_of(shard_keys.result_key(SHARD, names[0])) == names[0]


def test_of_a_save_that_fails_nothing_is_seen(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    files = Catalog(store)
    record = FileRecord(id=FILE, bytes=0, created_ms=1, filename="f", purpose="batch")
    saves: list[Callable[[], None]] = [
        lambda: files.save_file(TENANT, record),
        lambda: files.create_batch(make_spec()),
    ]

    def full_after_one(_: str) -> None:
        store.down = bool(store.written)

    for save in saves:
        store.written.clear()
        store.on_write = full_after_one
        with pytest.raises(StoreError):
            save()
        assert len(store.written) == 1
    for get in (lambda: files.get_file(TENANT, FILE), lambda: files.get_batch(REF)):
        with pytest.raises(ObjectNotFoundError):
            get()
    assert list(files.list_files(TENANT, after=None)) == []
    assert list(files.list_batches(TENANT, after=None)) == []
    store.written.clear()
    store.on_write = lambda key: None
    store.down = False
    again = record.model_copy(update={"created_ms": 2})
    files.save_file(TENANT, again)
    assert list(files.list_files(TENANT, after=None)) == [again]
    assert list(files.list_files(TENANT, after=None, ascending=True)) == [again]


def test_the_cut_of_a_batch_that_runs_can_be_read_after_an_upgrade() -> None:
    """It is stored when a batch begins, and its digest is in the keys of all that is committed. Never change this."""
    stored = b'{"input":"i","lines":"l","order":"","shards":[[0,1000,1,2,0]],"upstreams":["default"]}'
    cut = Cut.load(stored)
    assert cut == Cut("i", "l", [Shard(0, 1000, 1, 2)], ["default"])
    assert (cut.dump(), cut.digest) == (stored, "d99f13dac39365ba5fa645d617e2178c")
