"""The store in a folder."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from activities import configured
from activities.configured import open_store
from activities.settings import Settings
from activities.store.local import LocalStore
from activities.store.object_store import CHUNK, ObjectNotFoundError, StoreError
from activities.store.s3 import S3Store
from tests.store_contract import StoreContract
from tests.store_writer import write_and_delete
from tests.upload_race import race


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(str(tmp_path / "root" / "store"))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def test_a_reader_that_is_dropped_half_way_leaves_nothing_open(store: LocalStore) -> None:
    store.put("a", os.urandom(2 * CHUNK))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        store.stream("a")
        next(store.stream("a"))
    assert len(os.listdir("/proc/self/fd")) == before


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_writer_without_a_commit_leaves_no_file(store: LocalStore, tmp_path: Path) -> None:
    with store.writer("a/b") as writer:
        writer.write(b"x" * 3 * CHUNK)
    assert all_files(tmp_path) == []


@pytest.mark.parametrize("key", ["..", "../x", "a/../../x", "/etc/passwd", ".hidden", "a\0b"])
def test_bad_keys_touch_nothing(tmp_path: Path, key: str) -> None:
    store = LocalStore(str(tmp_path / "root" / "store"))
    (tmp_path / "x").write_bytes(b"outside")
    before = sorted(tmp_path.rglob("*"))
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b"evil"),
        lambda: store.writer(key).__enter__(),
        lambda: store.copy(key, "a"),
        lambda: store.compose([key, key], "a"),
        lambda: store.compose([], key),
        lambda: store.delete(key),
        lambda: store.delete_prefix(key.rstrip("/") + "/"),
    ]
    for call in calls:
        with pytest.raises(StoreError):
            call()
    assert sorted(tmp_path.rglob("*")) == before


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_and_delete, args=(str(tmp_path), number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert all_files(tmp_path) == []


def test_of_two_uploads_under_one_key_in_two_processes_one_wins(tmp_path: Path) -> None:
    race({"store": str(tmp_path)}, rounds=10)


# The folder itself


@pytest.mark.parametrize("why", [errno.EXDEV, errno.ENOSYS])
def test_where_the_system_cannot_copy_a_file_its_bytes_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    def cannot(*arguments: object) -> int:
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    store = LocalStore(str(tmp_path))
    one, two = os.urandom(2 * CHUNK + 1), os.urandom(3)
    store.put("one", one)
    store.put("two", two)
    store.compose(["one", "two", "one"], "three")
    assert store.get("three") == one + two + one


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
    assert str(caught.value).endswith(": its disk is full (No space left on device)")
    assert caught.value.condition == "its disk is full"
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.__cause__ is None  # Temporal keeps causes
    assert not isinstance(caught.value, ObjectNotFoundError)
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
    store = LocalStore(str(tmp_path))
    store.put("a", b"x")
    store.delete_stale()
    assert list((tmp_path / ".tmp").iterdir()) == [new]
    assert store.get("a") == b"x"
    LocalStore(str(tmp_path / "new")).delete_stale()  # nothing there yet
    (tmp_path / "file").touch()
    LocalStore(str(tmp_path / "file")).delete_stale()
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
        assert not isinstance(caught.value, ObjectNotFoundError)
    if mount_point:
        root.rmdir()  # and so it is empty still
    assert not root.exists()
    away.rename(root)
    store.put("a/c", b"new")
    assert (store.get("a/b"), store.get("a/c")) == (b"there", b"new")


def settings_of(store: str, **values: str) -> Settings:
    return Settings.model_validate({"store": store, **values})


S3 = {"s3_endpoint": "s3.example:9000", "s3_access_key": "access-word", "s3_secret_key": "secret-word"}


def test_the_address_says_which_store(tmp_path: Path) -> None:
    assert isinstance(open_store(settings_of(str(tmp_path))), LocalStore)
    for address in ("s3://bucket", "s3://bucket/", "s3://bucket/a/pre.fix", "s3://bucket/a/b/"):
        assert isinstance(open_store(settings_of(address, **S3)), S3Store)


@pytest.mark.parametrize(
    ("address", "values", "said"),
    [
        ("s4://bucket", {}, "EVERBATCH_STORE is neither"),
        ("s3://user:secret-word@bucket/x", {}, "EVERBATCH_STORE is neither"),
        ("s3://", {}, "EVERBATCH_STORE is neither"),
        ("s3://Bucket", {}, "EVERBATCH_STORE: invalid bucket name"),
        ("s3://bucket/../x", {}, "EVERBATCH_STORE: invalid prefix"),
        ("s3://bucket", {"s3_endpoint": ""}, "EVERBATCH_S3_ENDPOINT is not set"),
        ("s3://bucket", {"s3_access_key": ""}, "EVERBATCH_S3_ACCESS_KEY is not set"),
        ("s3://bucket", {"s3_secret_key": ""}, "EVERBATCH_S3_SECRET_KEY is not set"),
        ("s3://bucket", {"s3_endpoint": "http://s3.example"}, "without http://"),
        ("s3://bucket", {"s3_endpoint": "s3.example/path"}, "path in endpoint"),
        ("s3://bucket", {"s3_endpoint": "s3.example:x"}, "invalid port"),
        ("s3://bucket", {"s3_region": "no region"}, "invalid region"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_in_one_line(address: str, values: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        open_store(settings_of(address, **(S3 | values)))
    assert "\n" not in str(caught.value)
    assert "-word" not in str(caught.value)


def test_why_a_store_cannot_be_used_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(configured, "CHECK_AGAIN_SECONDS", 0.0)
    store = LocalStore(str(tmp_path))
    answers = ["no connection", "no connection", "access denied", ""]

    def check() -> None:
        if answer := answers.pop(0):
            raise StoreError(answer)

    monkeypatch.setattr(store, "check", check)
    with caplog.at_level(logging.WARNING, "everbatch"):
        configured.log_until_ready(store)
    said = [record.getMessage() for record in caplog.records]
    waiting = "waiting for the file store: "
    assert said == [f"{waiting}no connection", f"{waiting}access denied", "the file store is available"]


def test_nothing_is_for_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = LocalStore(str(tmp_path / "data" / "store"))
        store.put("a/b", b"x")
        store.copy("a/b", "c/d")
        store.compose(["a/b", "c/d"], "e/f/g")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in all_files(tmp_path)} == {0o600}


def test_a_copy_without_hard_links_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a", b"x")
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def no_links(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def synced(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}") if os.path.exists("/proc/self/fd") else "copy"
        steps.append(f"sync {os.path.basename(path)}")
        fsync(descriptor)

    def moved(source: str, target: Path) -> None:
        steps.append("move")
        replace(source, target)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    store.copy("a", "b")
    assert store.get("b") == b"x"
    assert steps[: steps.index("move")] == ["sync copy"]
