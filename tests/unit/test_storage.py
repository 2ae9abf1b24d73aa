"""The contract of ObjectStore. Every implementation joins as one more parameter of the ``store`` fixture."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from activities.settings import Settings
from activities.storage import CHUNK, ObjectNotFound, ObjectStore, StoreError, open_store
from activities.storage_local import LocalStore


def local_store(folder: Path) -> ObjectStore:
    return LocalStore(str(folder / "root" / "store"))


@pytest.fixture(params=[local_store], ids=["local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    make: Callable[[Path], ObjectStore] = request.param
    return make(tmp_path)


# Objects


def test_an_object_reads_back_and_can_be_replaced(store: ObjectStore) -> None:
    for data in (b"one", b"", b"a longer one"):
        store.put("a/b", data)
        assert store.get("a/b") == data
        assert store.size("a/b") == len(data)
        assert b"".join(store.stream("a/b")) == data


def test_check(store: ObjectStore) -> None:
    store.check()
    store.check()
    with pytest.raises(ObjectNotFound):
        store.get("check")


@pytest.mark.parametrize("key", ["a", "a/b", "a/b/c", "a.b/c-d_e.9"])
def test_what_is_not_there_is_not_found(store: ObjectStore, key: str) -> None:
    for read in (store.get, store.size, store.stream):
        with pytest.raises(ObjectNotFound):
            read(key)
    with pytest.raises(ObjectNotFound):
        store.copy(key, "target")
    assert not store.delete(key)
    store.delete_prefix(key + "/")
    assert list(store.list(key + "/")) == []


def test_a_prefix_is_no_object(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    for read in (store.get, store.stream):
        with pytest.raises(ObjectNotFound):
            read("a")
    with pytest.raises(ObjectNotFound):
        store.get("a/b/c")
    assert not store.delete("a")
    assert list(store.list("a/b/")) == []


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 7])
def test_ranges(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)
    store.put("a", data)
    for offset in (0, 1, size // 2, size, size + 5):
        for length in (None, 0, 1, size // 3, size + 9):
            end = None if length is None else offset + length
            chunks = list(store.stream("a", offset, length))
            assert b"".join(chunks) == data[offset:end]
            assert all(0 < len(chunk) <= CHUNK for chunk in chunks)


def test_a_reader_keeps_what_it_began_to_read(store: ObjectStore) -> None:
    data = os.urandom(2 * CHUNK)
    store.put("a", data)
    chunks = store.stream("a")
    first = next(chunks)
    store.put("a", b"new")
    assert first + b"".join(chunks) == data


def test_a_reader_that_is_dropped_half_way_leaves_nothing_open(store: ObjectStore) -> None:
    store.put("a", os.urandom(2 * CHUNK))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        store.stream("a")
        next(store.stream("a"))
    assert len(os.listdir("/proc/self/fd")) == before


# Writers


def test_nothing_is_seen_before_the_commit(store: ObjectStore) -> None:
    store.put("a", b"old")
    with store.writer("a") as writer:
        writer.write(b"ne")
        writer.write(b"w" * CHUNK)
        assert writer.size == CHUNK + 2
        assert store.get("a") == b"old"
        writer.commit()
        assert store.get("a") == b"ne" + b"w" * CHUNK
    assert store.size("a") == CHUNK + 2


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_writer_without_a_commit_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    with store.writer("a/b") as writer:
        writer.write(b"x" * 3 * CHUNK)
    with store.writer("a/b") as writer:
        writer.write(b"x")
        writer.abort()
        writer.abort()

    def fail() -> None:
        with store.writer("a/b") as writer:
            writer.write(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(store.list("a/")) == []
    assert all_files(tmp_path) == []


def test_an_abort_after_the_commit_does_nothing(store: ObjectStore) -> None:
    with store.writer("a/b") as writer:
        writer.write(b"x")
        writer.commit()
        writer.abort()
    assert store.get("a/b") == b"x"


# Listing and deleting

KEYS = ["a-b", "a.b/x", "a/0", "a/b", "a/b-c/d", "a/b.c", "a/c/d/e/f", "a/c/d/g", "a/d", "a0", "aa/z"]


def test_lists_are_in_plain_key_order(store: ObjectStore) -> None:
    for key in reversed(KEYS):
        store.put(f"p/{key}", b"")
    store.put("pp/x", b"")
    store.put("q", b"")
    keys = sorted(f"p/{key}" for key in KEYS)
    assert list(store.list("p/")) == keys
    assert list(store.list("p/a/")) == [key for key in keys if key.startswith("p/a/")]
    for after in [*keys, "p/", "p/a", "p/a/", "p/a/c/d/", "p/~", "zzz"]:
        assert list(store.list("p/", after=after)) == [key for key in keys if key > after]


def test_a_listing_survives_what_is_deleted_meanwhile(store: ObjectStore) -> None:
    for number in range(10):
        store.put(f"p/{number}/x", b"")
    keys = store.list("p/")
    assert next(keys) == "p/0/x"
    store.delete_prefix("p/")
    list(keys)


def test_delete_says_whether_there_was_something(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    store.put("a/c", b"y")
    assert store.delete("a/b")
    assert not store.delete("a/b")
    assert list(store.list("a/")) == ["a/c"]


def test_delete_prefix_takes_all_below_and_nothing_beside(store: ObjectStore) -> None:
    for key in ("a/b/c", "a/b/d/e", "a/bb/c", "a/b.c", "b"):
        store.put(key, b"x")
    store.delete_prefix("a/b/")
    store.delete_prefix("a/b/")
    assert list(store.list("a/")) == ["a/b.c", "a/bb/c"]
    assert store.get("b") == b"x"


def test_a_copy_outlives_its_source(store: ObjectStore) -> None:
    store.put("a/source", b"old")
    store.put("target", b"to be replaced")
    store.copy("a/source", "target")
    store.copy("a/source", "new/folder/target")
    store.put("a/source", b"new")
    store.delete("a/source")
    assert store.get("target") == store.get("new/folder/target") == b"old"


# Keys that cannot be


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "./a",
        "a//b",
        "/etc/passwd",
        "a/",
        ".hidden",
        "a/.b",
        "a\0b",
        "a b",
        "a\n",
        "é",
        "a\\..\\b",
        "~",
    ],
)
def test_bad_keys_touch_nothing(store: ObjectStore, tmp_path: Path, key: str) -> None:
    (tmp_path / "x").write_bytes(b"outside")
    before = sorted(tmp_path.rglob("*"))
    for call in (
        lambda: store.get(key),
        lambda: store.size(key),
        lambda: store.stream(key),
        lambda: store.put(key, b"evil"),
        lambda: store.writer(key).__enter__(),
        lambda: store.copy(key, "a"),
        lambda: store.delete(key),
    ):
        with pytest.raises(StoreError):
            call()
    if not key.endswith("/"):
        with pytest.raises(StoreError):
            store.delete_prefix(key + "/")
        with pytest.raises(StoreError):
            list(store.list(key + "/"))
    assert sorted(tmp_path.rglob("*")) == before
    store.put("a", b"x")
    with pytest.raises(StoreError):
        store.copy("a", key)


# Many at once


def test_writers_and_deleters_in_one_folder_never_get_in_each_others_way(store: ObjectStore) -> None:
    # Where folders are real, deleting the last object removes them under the next writer.
    store.put("source", b"s")
    start = threading.Barrier(8)

    def work(worker: int) -> None:
        start.wait()
        for number in range(150):
            key = f"deep/er/folder/{worker}"
            if number % 3:
                store.put(key, b"%d" % number)
            else:
                store.copy("source", key)
            assert store.get(key) in (b"%d" % number, b"s")
            assert store.delete(key)
            list(store.list("deep/"))

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, worker) for worker in range(8)]:
            future.result()
    assert list(store.list("deep/")) == []


def test_of_many_writers_of_one_key_one_wins_whole(store: ObjectStore) -> None:
    def write(worker: int) -> None:
        for _ in range(30):
            with store.writer("a/b") as writer:
                for _ in range(5):
                    writer.write(b"%d" % worker * 1000)
                writer.commit()
            assert len(set(store.get("a/b"))) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert store.size("a/b") == 5000


def _write_in_process(folder: str, worker: int) -> None:
    store = LocalStore(folder)
    for number in range(60):
        key = f"p/{number % 3}/{worker}-{number}"
        store.put(key, b"%d" % worker)
        assert store.get(key) == b"%d" % worker
        assert store.delete(key)


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_in_process, args=(str(tmp_path), number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert all_files(tmp_path) == []


# The folder itself


@pytest.mark.parametrize("failing", ["fsync", "replace", "mkdir"])
def test_what_the_system_refuses_is_a_store_error_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a/b", b"old")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "secret"))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(StoreError) as caught:
            store.put("new/b" if failing == "mkdir" else "a/b", b"new")
    assert str(caught.value).endswith("No space left on device")
    assert str(tmp_path) not in str(caught.value)
    assert not isinstance(caught.value, ObjectNotFound)
    assert store.get("a/b") == b"old"
    assert all_files(tmp_path) == [tmp_path / "a" / "b"]


def test_a_root_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalStore(str(tmp_path / "file"))
    with pytest.raises(StoreError) as caught:
        store.check()
    assert str(tmp_path) not in str(caught.value)


def test_a_check_sees_a_disk_that_takes_names_but_no_bytes(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(StoreError):
            store.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    store.check()
    assert all_files(tmp_path) == []


def test_what_killed_writers_left_goes_after_a_day(tmp_path: Path) -> None:
    old, new, folder = (tmp_path / ".tmp" / name for name in ("old", "new", "folder"))
    folder.mkdir(parents=True)
    for path in (old, new, folder / "copy"):
        path.write_bytes(b"x")
    for path in (old, folder):
        os.utime(path, (0, time.time() - 25 * 3600))
    store = open_store(settings_of(str(tmp_path)))
    assert list((tmp_path / ".tmp").iterdir()) == [new]
    store.put("a", b"x")
    open_store(settings_of(str(tmp_path / "new")))  # nothing there yet
    (tmp_path / "file").touch()
    open_store(settings_of(str(tmp_path / "file")))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mount_point", [False, True])
def test_a_store_that_has_gone_is_not_an_empty_one(tmp_path: Path, mount_point: bool) -> None:
    root = tmp_path / "store"
    store = LocalStore(str(root))
    store.put("a/b", b"there")
    away = root.rename(tmp_path / "away")
    if mount_point:
        root.mkdir()
    calls: list[Callable[[], object]] = [
        lambda: store.get("a/b"),
        lambda: store.size("a/b"),
        lambda: store.stream("a/b"),
        lambda: list(store.list("a/")),
        lambda: store.delete("a/b"),
        lambda: store.put("a/c", b"new"),
        lambda: store.copy("a/b", "a/c"),
        store.check,
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert not isinstance(caught.value, ObjectNotFound)
    if mount_point:
        root.rmdir()  # and so it is empty still
    assert not root.exists()
    away.rename(root)
    store.put("a/c", b"new")
    assert (store.get("a/b"), store.get("a/c")) == (b"there", b"new")


def settings_of(store: str) -> Settings:
    return Settings.model_validate({"store": store})


def test_the_address_says_which_store(tmp_path: Path) -> None:
    assert isinstance(open_store(settings_of(str(tmp_path))), LocalStore)
    with pytest.raises(ValueError, match="EVERBATCH_STORE="):
        open_store(settings_of("s4://bucket"))
