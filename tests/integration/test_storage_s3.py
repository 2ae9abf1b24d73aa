"""The store on S3, against a real server."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from minio import Minio

from activities.configured import open_store
from activities.settings import Settings
from activities.store import s3 as storage_s3
from activities.store import s3_client
from activities.store.object_store import CHUNK, ObjectNotFoundError, ObjectStore, StoreError
from tests.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from tests.store_contract import StoreContract
from tests.upload_race import race

MIB = 1 << 20


def store_on(server: S3Server, prefix: str = "", bucket: str = BUCKET, **settings: Any) -> ObjectStore:
    address = f"s3://{bucket}/{prefix or uuid.uuid4().hex}"
    return open_store(Settings.model_validate({"store": address, **server.settings, **settings}))


def client_of(server: S3Server) -> Minio:
    return s3_client.connect(server.settings["s3_endpoint"], ACCESS_KEY, SECRET_KEY, "us-east-1", False)


@pytest.fixture
def store(s3_server: S3Server) -> ObjectStore:
    return store_on(s3_server)


class TestS3Store(StoreContract):
    ROUNDS = 20
    # This server keeps objects in folders, and refuses a put now and then while a delete empties its folder.
    KEPT = ("deep/er/folder/kept",)

    @pytest.fixture
    def store(self, s3_server: S3Server) -> ObjectStore:
        return store_on(s3_server)


def uploads(server: S3Server, prefix: str) -> list[str]:
    """Multipart uploads that have not ended."""
    found = client_of(server)._list_multipart_uploads(BUCKET, prefix=f"{prefix}/")  # pyright: ignore[reportPrivateUsage]
    return [upload.object_name or "" for upload in found.uploads]


def test_of_two_uploads_under_one_key_in_two_processes_one_wins(s3_server: S3Server) -> None:
    race({"store": f"s3://{BUCKET}/{uuid.uuid4().hex}", **s3_server.settings}, rounds=5)


# Objects of several parts


@pytest.mark.parametrize("size", [storage_s3.PART_BYTES, storage_s3.PART_BYTES + 1, 2 * storage_s3.PART_BYTES])
def test_an_object_of_whole_parts(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)
    with store.writer("a") as writer:
        writer.write(data[:7])
        writer.write(data[7:])
        writer.commit()
    assert store.get("a") == data
    assert b"".join(store.stream("a", size - 9, 100)) == data[-9:]


@pytest.mark.parametrize("sizes", [(6, 5, 1), (6, 0, 7), (1, 6), (6,)])
def test_large_objects_are_put_together(store: ObjectStore, sizes: tuple[int, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr(storage_s3, "COPY_BYTES", 5 * MIB)  # so that one source needs several copies
    data = {f"p/{number}": os.urandom(size * MIB + (3 if size else 0)) for number, size in enumerate(sizes)}
    for key, content in data.items():
        store.put(key, content)
    store.compose(list(data), "target")
    assert store.get("target") == b"".join(data.values())
    store.copy("p/0", "copy")
    assert store.get("copy") == data["p/0"]


def test_an_aborted_upload_leaves_nothing(s3_server: S3Server) -> None:
    prefix = uuid.uuid4().hex
    store = store_on(s3_server, prefix)
    with store.writer("a") as writer:
        writer.write(bytes(6 * MIB))
        assert uploads(s3_server, prefix) == [f"{prefix}/a"]
    with store.writer("b") as writer:
        writer.write(bytes(6 * MIB))
        writer.commit()
        writer.abort()
    assert uploads(s3_server, prefix) == []
    assert len(store.get("b")) == 6 * MIB
    with pytest.raises(ObjectNotFoundError):
        store.get("a")


def test_what_killed_writers_left_goes_after_a_day(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, other = uuid.uuid4().hex, uuid.uuid4().hex
    store = store_on(s3_server, prefix)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromtimestamp(time.time() + 25 * 3600, UTC)

    with store.writer("a") as writer, store_on(s3_server, other).writer("a") as of_another:
        for one in (writer, of_another):
            one.write(bytes(6 * MIB))  # and now its process is killed
        store.delete_stale()
        assert uploads(s3_server, prefix) == [f"{prefix}/a"]
        monkeypatch.setattr(storage_s3, "datetime", Tomorrow)
        store.delete_stale()
        assert uploads(s3_server, prefix) == []
        assert uploads(s3_server, other) == [f"{other}/a"]
        with pytest.raises(StoreError):
            writer.commit()
    with pytest.raises(ObjectNotFoundError):
        store.get("a")


def test_memory_does_not_grow_with_the_object(store: ObjectStore) -> None:
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    piece = os.urandom(MIB)
    store.put("small", piece)
    before = peak()
    with store.writer("a") as writer:
        for _ in range(200):
            writer.write(piece)
        writer.commit()
    assert sum(len(chunk) for chunk in store.stream("a")) == 200 * MIB
    assert peak() - before < 60


# Listing


def test_a_long_list_comes_in_pages(s3_server: S3Server) -> None:
    prefix = uuid.uuid4().hex
    store = store_on(s3_server, prefix)
    store.put("p/n-0000", b"")
    folder = s3_server.root / BUCKET / prefix / "p"
    for number in range(1, 2100):  # files are objects for this server, and 2,100 puts would take a while
        (folder / f"n-{number:04d}").touch()
    keys = [f"p/n-{number:04d}" for number in range(2100)]
    assert list(store.list("p/")) == keys
    assert list(store.list("p/", after=keys[500])) == keys[501:]
    assert next(store.list("p/", after=keys[2000])) == keys[2001]
    store.delete_prefix("p/")
    assert list(store.list("p/")) == []


# Many at once


def test_eight_at_once(store: ObjectStore) -> None:
    def work(number: int) -> None:
        data = os.urandom(6 * MIB + number)
        for _ in range(3):
            with store.writer(f"a/{number}") as writer:
                writer.write(data)
                writer.commit()
            next(store.stream(f"a/{number}"))  # dropped half way
            assert store.get(f"a/{number}") == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_readers_that_are_dropped_leave_no_connection_open(store: ObjectStore) -> None:
    store.put("a", os.urandom(3 * CHUNK))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        next(store.stream("a"))
        store.stream("a", 5, 0)
        chunks = store.stream("a")
        next(chunks)
        del chunks
    assert len(store.get("a")) == 3 * CHUNK
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the one that is kept


# Faults


def calls_of(store: ObjectStore) -> list[Callable[[], object]]:
    return [
        lambda: store.get("a"),
        lambda: store.stream("a"),
        lambda: list(store.list("p/")),
        lambda: store.delete("a"),
        lambda: store.delete("a", "b"),
        lambda: store.delete_prefix("p/"),
        lambda: store.put("a", b"new"),
        lambda: store.copy("a", "b"),
        lambda: store.compose(["a", "a"], "b"),
        store.check,
        store.delete_stale,
    ]


def assert_all_fail(store: ObjectStore, text: str, *never: str) -> None:
    for call in calls_of(store):
        with pytest.raises(StoreError, match=text) as caught:
            call()
        assert not isinstance(caught.value, ObjectNotFoundError)
        assert caught.value.__cause__ is None  # Temporal would keep it
        for word in (ACCESS_KEY, SECRET_KEY, "http", "127.0.0.1", *never):
            assert word not in str(caught.value)


def test_a_server_that_is_away_and_back(own_s3_server: S3Server) -> None:
    store, late = store_on(own_s3_server, "x"), store_on(own_s3_server, "x")
    store.put("a", b"there")
    own_s3_server.kill()
    before = time.monotonic()
    assert_all_fail(store, "no connection")
    assert_all_fail(late, "no connection")
    assert time.monotonic() - before < 5
    own_s3_server.start()
    assert store.get("a") == late.get("a") == b"there"


def test_a_server_that_is_killed_while_it_is_read(own_s3_server: S3Server) -> None:
    store = store_on(own_s3_server, "x")
    data = os.urandom(40 * MIB)
    store.put("a", data)
    chunks = store.stream("a")
    next(chunks)
    own_s3_server.kill()
    with pytest.raises(StoreError, match=r"response was incomplete|broke"):
        list(chunks)
    own_s3_server.start()
    assert store.get("a") == data


def test_a_server_that_is_killed_while_it_is_written(own_s3_server: S3Server) -> None:
    store = store_on(own_s3_server, "x")
    store.put("a", b"old")
    with store.writer("a") as writer:
        writer.write(bytes(6 * MIB))
        own_s3_server.kill()
        with pytest.raises(StoreError):
            writer.write(bytes(6 * MIB))
    own_s3_server.start()
    assert store.get("a") == b"old"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"s3_access_key": "nobody-knows-it"}, "the access key is unknown"),
        ({"s3_secret_key": "not-the-secret"}, "the secret key is wrong"),
    ],
)
def test_bad_credentials(s3_server: S3Server, wrong: dict[str, str], said: str) -> None:
    assert_all_fail(store_on(s3_server, **wrong), said, *wrong.values())


def test_a_bucket_that_has_gone_is_no_empty_store(s3_server: S3Server) -> None:
    bucket = f"b-{uuid.uuid4().hex}"
    store = store_on(s3_server, "x", bucket)
    store.check()
    (s3_server.root / bucket).rename(s3_server.root / f"{bucket}-away")
    assert_all_fail(store, "the bucket does not exist")
    (s3_server.root / f"{bucket}-away").rename(s3_server.root / bucket)
    store.check()


def test_two_that_start_at_once_make_one_bucket(s3_server: S3Server) -> None:
    bucket = f"b-{uuid.uuid4().hex}"
    stores = [store_on(s3_server, "x", bucket) for _ in range(8)]

    def start(store: ObjectStore) -> None:
        store.put("a", b"x")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, stores))
    assert (s3_server.root / bucket).is_dir()


# Servers that do not keep to it


@pytest.fixture
def odd_server() -> Generator[Callable[[bytes], ObjectStore]]:
    """Makes a store on a server that gives this one answer to everything, and then hangs or hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()
    answers: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(answers[0])
            if answers[0].endswith(b"hang"):
                stop.wait(20)

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,)).start()

    def make(text: bytes) -> ObjectStore:
        answers[:] = [text]
        return open_store(
            Settings.model_validate(
                {
                    "store": "s3://bucket",
                    "s3_endpoint": f"127.0.0.1:{listener.getsockname()[1]}",
                    "s3_access_key": ACCESS_KEY,
                    "s3_secret_key": SECRET_KEY,
                    "s3_secure": "false",
                }
            )
        )

    thread = threading.Thread(target=serve)
    thread.start()
    yield make
    stop.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\r\n<h1>secret</h>",
            "not from S3|HTTP 502",
        ),
        (b"HTTP/1.1 503 Slow\r\nContent-Type: application/xml\r\nContent-Length: 0\r\n\r\n", "not from S3|HTTP 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 5\r\n\r\n<a><b", "not from S3"),
        (b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n", "not from S3"),
        (b"not http at all\r\n\r\n", "the connection broke"),
        (b"", "the connection broke"),
        (b"hang", "no answer in time|the connection broke"),
    ],
)
def test_answers_that_are_not_s3s(
    odd_server: Callable[[bytes], ObjectStore], monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.2)
    with pytest.raises(StoreError, match=said) as caught:
        odd_server(answer).get("a")
    assert not isinstance(caught.value, ObjectNotFoundError)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("end", [b"", b"hang"])
def test_a_body_that_ends_too_early(
    odd_server: Callable[[bytes], ObjectStore], monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.2)
    store = odd_server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nless than that" + end)
    monkeypatch.setattr(storage_s3.S3Store, "_open", lambda self: self._client)  # pyright: ignore
    with pytest.raises(StoreError, match=r"the response was incomplete|no answer in time"):
        store.get("a")
