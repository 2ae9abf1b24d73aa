"""The contract of ObjectStore, for every implementation: a subclass that has a ``store`` fixture."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from activities.store.object_store import CHUNK, ObjectNotFoundError, ObjectStore, StoreError

KEYS = ["a-b", "a.b/x", "a/0", "a/b", "a/b-c/d", "a/b.c", "a/c/d/e/f", "a/c/d/g", "a/d", "a0", "aa/z"]


class StoreContract:
    ROUNDS = 150
    """Of each thread, where several are at work."""
    KEPT: tuple[str, ...] = ()
    """Objects that stay meanwhile."""

    # Objects

    def test_an_object_reads_back_and_can_be_replaced(self, store: ObjectStore) -> None:
        for data in (b"one", b"", b"a longer one"):
            store.put("a/b", data)
            assert store.get("a/b") == data
            assert b"".join(store.stream("a/b")) == data

    def test_check(self, store: ObjectStore) -> None:
        store.check()
        store.check()
        with pytest.raises(ObjectNotFoundError):
            store.get("check")

    @pytest.mark.parametrize("key", ["a", "a/b", "a/b/c", "a.b/c-d_e.9"])
    def test_what_is_not_there_is_not_found(self, store: ObjectStore, key: str) -> None:
        for read in (store.get, store.stream):
            with pytest.raises(ObjectNotFoundError):
                read(key)
        with pytest.raises(ObjectNotFoundError):
            store.copy(key, "target")
        store.delete(key)
        store.delete_prefix(key + "/")
        assert list(store.list(key + "/")) == []

    def test_a_prefix_is_no_object(self, store: ObjectStore) -> None:
        store.put("a/b", b"x")
        for read in (store.get, store.stream):
            with pytest.raises(ObjectNotFoundError):
                read("a")
        with pytest.raises(ObjectNotFoundError):
            store.get("a/b/c")
        store.delete("a")
        assert store.get("a/b") == b"x"
        assert list(store.list("a/b/")) == []

    @pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 7])
    def test_ranges(self, store: ObjectStore, size: int) -> None:
        data = os.urandom(size)
        store.put("a", data)
        for offset in (0, 1, size // 2, size, size + 5):
            for length in (None, 0, 1, size // 3, size + 9):
                end = None if length is None else offset + length
                chunks = list(store.stream("a", offset, length))
                assert b"".join(chunks) == data[offset:end]
                assert all(0 < len(chunk) <= CHUNK for chunk in chunks)

    def test_a_reader_keeps_what_it_began_to_read(self, store: ObjectStore) -> None:
        data = os.urandom(2 * CHUNK)
        store.put("a", data)
        chunks = store.stream("a")
        first = next(chunks)
        store.put("a", b"new")
        assert first + b"".join(chunks) == data

    # Writers

    def test_nothing_is_seen_before_the_commit(self, store: ObjectStore) -> None:
        store.put("a", b"old")
        with store.writer("a") as writer:
            writer.write(b"ne")
            writer.write(b"w" * CHUNK)
            assert writer.size == CHUNK + 2
            assert store.get("a") == b"old"
            writer.commit()
            assert store.get("a") == b"ne" + b"w" * CHUNK
        assert len(store.get("a")) == CHUNK + 2

    def test_a_writer_without_a_commit_leaves_nothing(self, store: ObjectStore) -> None:
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

    def test_an_abort_after_the_commit_does_nothing(self, store: ObjectStore) -> None:
        with store.writer("a/b") as writer:
            writer.write(b"x")
            writer.commit()
            writer.abort()
        assert store.get("a/b") == b"x"

    # Listing and deleting

    def test_lists_are_in_plain_key_order(self, store: ObjectStore) -> None:
        for key in reversed(KEYS):
            store.put(f"p/{key}", b"")
        store.put("pp/x", b"")
        store.put("q", b"")
        keys = sorted(f"p/{key}" for key in KEYS)
        assert list(store.list("p/")) == keys
        assert list(store.list("p/a/")) == [key for key in keys if key.startswith("p/a/")]
        for after in [*keys, "p/", "p/a", "p/a/", "p/a/c/d/", "p/~", "zzz"]:
            assert list(store.list("p/", after=after)) == [key for key in keys if key > after]
            assert list(store.list_backwards("p/", before=after)) == [key for key in reversed(keys) if key < after]
        assert list(store.list_backwards("p/")) == keys[::-1]
        assert list(store.list_backwards("p/a/")) == [key for key in reversed(keys) if key.startswith("p/a/")]
        assert list(store.list_backwards("p/", before="a")) == list(store.list("p/", after="q")) == []

    def test_bytes_below_a_prefix(self, store: ObjectStore) -> None:
        for key, size in (("p/a", 3), ("p/b/c", 40), ("p/b/d", 0), ("pp/x", 500)):
            store.put(key, b"x" * size)
        assert [store.bytes_below(prefix) for prefix in ("p/", "p/b/", "q/")] == [43, 40, 0]

    def test_a_listing_survives_what_is_deleted_meanwhile(self, store: ObjectStore) -> None:
        for number in range(10):
            store.put(f"p/{number}/x", b"")
        keys = store.list("p/")
        assert next(keys) == "p/0/x"
        store.delete_prefix("p/")
        list(keys)

    def test_what_is_deleted_is_gone(self, store: ObjectStore) -> None:
        for key in ("a/b", "a/c", "a/d", "a/e"):
            store.put(key, b"x")
        store.delete("a/b")
        store.delete("a/b")
        assert list(store.list("a/")) == ["a/c", "a/d", "a/e"]
        store.delete("a/d", "a/b", "a/c")
        store.delete()
        assert list(store.list("a/")) == ["a/e"]

    def test_delete_prefix_takes_all_below_and_nothing_beside(self, store: ObjectStore) -> None:
        for key in ("a/b/c", "a/b/d/e", "a/bb/c", "a/b.c", "b"):
            store.put(key, b"x")
        store.delete_prefix("a/b/")
        store.delete_prefix("a/b/")
        assert list(store.list("a/")) == ["a/b.c", "a/bb/c"]
        assert store.get("b") == b"x"

    def test_a_copy_outlives_its_source(self, store: ObjectStore) -> None:
        store.put("a/source", b"old")
        store.put("target", b"to be replaced")
        store.copy("a/source", "target")
        store.copy("a/source", "new/folder/target")
        store.put("a/source", b"new")
        store.delete("a/source")
        assert store.get("target") == store.get("new/folder/target") == b"old"

    @pytest.mark.parametrize("sizes", [[], [0], [5], [0, 0], [3, 0, 2 * CHUNK + 7, 1]])
    def test_a_composed_object_is_its_sources_in_order(self, store: ObjectStore, sizes: list[int]) -> None:
        store.put("target", b"to be replaced")
        parts = {f"p/{len(sizes) - number}": os.urandom(size) for number, size in enumerate(sizes)}
        for key, data in parts.items():
            store.put(key, data)
        store.compose(list(parts), "target")
        assert store.get("target") == b"".join(parts.values())
        store.delete_prefix("p/")
        assert store.get("target") == b"".join(parts.values())

    def test_a_source_may_come_twice_and_be_the_target(self, store: ObjectStore) -> None:
        store.put("a", b"one")
        store.compose(["a", "a"], "a")
        store.compose(["a"], "a")
        assert store.get("a") == b"oneone"

    @pytest.mark.parametrize("sources", [["gone"], ["a", "gone"], ["gone", "a"]])
    def test_nothing_is_composed_of_what_is_not_there(self, store: ObjectStore, sources: list[str]) -> None:
        store.put("a", b"x")
        store.put("target", b"old")
        with pytest.raises(ObjectNotFoundError):
            store.compose(sources, "target")
        assert store.get("target") == b"old"

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
    def test_bad_keys_are_refused(self, store: ObjectStore, key: str) -> None:
        for call in (
            lambda: store.get(key),
            lambda: store.stream(key),
            lambda: store.put(key, b"evil"),
            lambda: store.put_new(key, b"evil"),
            lambda: store.writer(key).__enter__(),
            lambda: store.copy(key, "a"),
            lambda: store.compose([key, key], "a"),
            lambda: store.compose([], key),
            lambda: store.delete(key),
        ):
            with pytest.raises(StoreError):
                call()
        if not key.endswith("/"):
            with pytest.raises(StoreError):
                store.delete_prefix(key + "/")
            with pytest.raises(StoreError):
                list(store.list(key + "/"))
        store.put("a", b"x")
        with pytest.raises(StoreError):
            store.copy("a", key)

    # Many at once

    def test_writers_and_deleters_in_one_folder_never_get_in_each_others_way(self, store: ObjectStore) -> None:
        # Where folders are real, deleting the last object removes them under the next writer.
        for key in ("source", *self.KEPT):
            store.put(key, b"s")
        start = threading.Barrier(8)

        def work(worker: int) -> None:
            start.wait()
            for number in range(self.ROUNDS):
                key = f"deep/er/folder/{worker}"
                if number % 3:
                    store.put(key, b"%d" % number)
                else:
                    store.copy("source", key)
                assert store.get(key) in (b"%d" % number, b"s")
                store.delete(key)
                list(store.list("deep/"))

        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(work, worker) for worker in range(8)]:
                future.result()
        assert list(store.list("deep/")) == [*self.KEPT]

    def test_of_many_who_create_one_object_one_does_and_all_are_given_it(self, store: ObjectStore) -> None:
        start = threading.Barrier(8)

        def create(worker: int) -> list[bytes]:
            given: list[bytes] = []
            for number in range(self.ROUNDS // 5):
                start.wait()
                given.append(store.put_new(f"a/{number}/b", b"%d" % worker))
            return given

        with ThreadPoolExecutor(8) as pool:
            given = list(pool.map(create, range(8)))
        for number, of_round in enumerate(zip(*given, strict=True)):
            assert set(of_round) == {store.get(f"a/{number}/b")}
        assert store.put_new("a/0/b", b"other") == store.get("a/0/b") != b"other"

    def test_of_many_writers_of_one_key_one_wins_whole(self, store: ObjectStore) -> None:
        def write(worker: int) -> None:
            for _ in range(self.ROUNDS // 5):
                with store.writer("a/b") as writer:
                    for _ in range(5):
                        writer.write(b"%d" % worker * 1000)
                    writer.commit()
                assert len(set(store.get("a/b"))) == 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert len(store.get("a/b")) == 5000
