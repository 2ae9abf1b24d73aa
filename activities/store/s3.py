"""The object store in a bucket of an S3 server."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

from minio import Minio
from minio.commonconfig import ComposeSource, CopySource
from minio.datatypes import Object, Part
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.helpers import check_bucket_name

from activities.store.object_store import (
    STALE_SECONDS,
    ObjectNotFoundError,
    ObjectWriter,
    StoreError,
    checked_key,
)
from activities.store.s3_client import GONE, ObjectBody, failing, reason_of_code

PART_BYTES: Final = 5 << 20
"""Size of a part of a multipart upload: the minimum of S3, because each open writer holds one in memory. With at most
10,000 parts, an object has up to 48 GiB."""

COPY_BYTES: Final = 256 << 20
"""Maximum number of bytes that one request copies, so that a slow server answers before the read timeout."""

MULTIPART_FOLDERS: Final = ("batches/", "files/", "uploads/")
"""Prefixes of large objects, in a store that uses the bucket without a prefix of its own."""

_LISTED_AT_ONCE: Final = 1000  # the maximum number of keys in a response
_CHECK_NAME: Final = ".check"  # no key begins with a dot
SETTLE_SECONDS: Final = 0.2
"""Seconds between a conditional put and reading its result. AWS decides such a put atomically. Servers over a file
system (versitygw) check before they write, so two overlapping puts may both report success; after the wait, both
callers read the object that remains."""
_TAKEN: Final = ("PreconditionFailed", "ConditionalRequestConflict")
"""Error codes of a conditional put when the key is taken by an object or by a concurrent request."""
_BUCKET_IS_THERE: Final = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


class _S3Writer:
    """Writes an object with a single put, or with a multipart upload if it has more than one part.

    It uses private calls of the library: the public one reads the bytes from a stream and commits when the stream ends,
    which would need a thread and a queue for each writer.
    """

    def __init__(self, client: Minio, bucket: str, name: str, key: str) -> None:
        self._client = client
        self._bucket = bucket
        self._name = name
        self._key = key
        self._buffer = bytearray()
        self._upload_id = ""
        self._parts: list[Part] = []
        self._done = False
        self.size = 0

    def write(self, data: bytes) -> None:
        self._buffer += data
        self.size += len(data)
        while len(self._buffer) > PART_BYTES:
            with memoryview(self._buffer) as view:
                part = bytes(view[:PART_BYTES])
            self._upload(part)
            del self._buffer[:PART_BYTES]

    def commit(self) -> None:
        assert not self._done, "a writer commits once"
        last = bytes(self._buffer)
        if self._upload_id:
            if last:  # otherwise an earlier commit has uploaded it and then failed
                self._upload(last)
            self._buffer.clear()
            self._complete()
        else:
            with failing(self._key):
                self._client.put_object(
                    bucket_name=self._bucket, object_name=self._name, data=io.BytesIO(last), length=len(last)
                )
        self._done = True
        self._buffer.clear()

    def abort(self) -> None:
        if not self._done and self._upload_id:
            # If this fails, delete_stale cleans up. If the response to a commit was lost, there is nothing to abort.
            with contextlib.suppress(StoreError), failing(self._key):
                self._client._abort_multipart_upload(  # pyright: ignore[reportPrivateUsage]
                    bucket_name=self._bucket, object_name=self._name, upload_id=self._upload_id
                )
        self._done = True
        self._buffer.clear()

    def _upload(self, part: bytes) -> None:
        with failing(self._key):
            if not self._upload_id:
                self._upload_id = self._client._create_multipart_upload(  # pyright: ignore[reportPrivateUsage]
                    bucket_name=self._bucket, object_name=self._name, headers={}
                )
            number = len(self._parts) + 1
            etag = self._client._upload_part(  # pyright: ignore[reportPrivateUsage]
                bucket_name=self._bucket,
                object_name=self._name,
                data=part,
                headers=None,
                upload_id=self._upload_id,
                part_number=number,
            )
        self._parts.append(Part(number, etag))

    def _complete(self) -> None:
        with failing(self._key):
            result = self._client._complete_multipart_upload(  # pyright: ignore[reportPrivateUsage]
                bucket_name=self._bucket, object_name=self._name, upload_id=self._upload_id, parts=self._parts
            )
        if not result.etag:  # S3 may send 200 first and then an error, which the library takes for a result
            raise StoreError.at(self._key, "the object could not be assembled")


class S3Store:
    """See :class:`activities.store.object_store.ObjectStore` for the contract."""

    reads_at_once = 16

    def __init__(self, client: Minio, bucket: str, prefix: str = "") -> None:
        """Args: ``prefix`` is put before each key, followed by a ``/``.

        Raises:
            ValueError: the bucket name or the prefix is not valid.
        """
        check_bucket_name(bucket, strict=True)
        try:
            self._prefix = f"{checked_key(prefix)}/" if prefix else ""
        except ObjectNotFoundError as error:
            raise ValueError(f"invalid prefix {prefix}") from error
        self._client = client
        self._bucket = bucket
        self._bucket_was_there = False
        self._knows_conditions = False

    def _name(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _folder(self, prefix: str) -> str:
        return f"{self._name(prefix.rstrip('/'))}/"

    def _open(self) -> Minio:
        """Return the client. The first call creates the bucket if it does not exist.

        A bucket that disappears later is not created again, because it had objects in it.
        """
        if not self._bucket_was_there:
            with failing("start"):
                try:
                    self._probe()
                except S3Error as error:
                    if error.code != "NoSuchBucket":
                        raise
                    self._make_bucket()
            self._bucket_was_there = True
        return self._client

    def _probe(self) -> None:
        # Not a HEAD request: its errors have no body, and so do not say what is wrong.
        next(self._client.list_objects(bucket_name=self._bucket, prefix=f"{self._prefix}{_CHECK_NAME}"), None)

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(bucket_name=self._bucket)
        except S3Error as error:
            if error.code not in _BUCKET_IS_THERE:
                raise

    def check(self) -> None:
        name = self._prefix + _CHECK_NAME
        client = self._open()
        with failing("check"):
            client.put_object(bucket_name=self._bucket, object_name=name, data=io.BytesIO(b"ok"), length=2)
        if b"".join(self._read("check", name, 0, None)) != b"ok":
            raise StoreError("the store returns different bytes than were written")
        self._check_conditions(client, name)

    def _check_conditions(self, client: Minio, name: str) -> None:
        """Check once that the server supports ``If-None-Match``: one that ignores it would let two creates both win."""
        if not self._knows_conditions:
            with failing("check"):
                self._knows_conditions = not self._created(client, name, b"ok")
        if not self._knows_conditions:
            raise StoreError("the S3 server does not support If-None-Match, so one upload could replace another")

    def _created(self, client: Minio, name: str, data: bytes) -> bool:
        try:
            # The library's public call does not accept this header.
            client._put_object(self._bucket, name, data, {"If-None-Match": "*"})  # pyright: ignore[reportPrivateUsage]
        except S3Error as error:
            if error.code not in _TAKEN:
                raise
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        name, client = self._name(key), self._open()
        with failing(key):
            client.put_object(bucket_name=self._bucket, object_name=name, data=io.BytesIO(data), length=len(data))

    def put_new(self, key: str, data: bytes) -> bytes:
        name, client = self._name(key), self._open()
        with failing(key):
            self._created(client, name, data)
        time.sleep(SETTLE_SECONDS)
        return self.get(key)

    def get(self, key: str) -> bytes:
        return b"".join(self.stream(key))

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._read(key, self._name(key), offset, length)

    def _read(self, key: str, name: str, offset: int, length: int | None) -> Iterator[bytes]:
        client = self._open()
        # The library treats a length of 0 as no length, so one byte is requested instead and not read.
        wanted = None if length is None else max(length, 1)
        with failing(key):
            try:
                response = client.get_object(
                    bucket_name=self._bucket, object_name=name, offset=offset, length=wanted or 0
                )
            except S3Error as error:
                if error.code == "InvalidRange":  # the offset is at the object's end or beyond
                    return iter(())
                raise
        body = ObjectBody(key, response, length)
        if offset and response.status != 206:
            body.close()
            raise StoreError.at(key, "it cannot read from the middle of an object")
        return body

    @contextlib.contextmanager
    def writer(self, key: str) -> Generator[ObjectWriter]:
        writer = _S3Writer(self._open(), self._bucket, self._name(key), key)
        try:
            yield writer
        finally:
            writer.abort()

    def copy(self, source: str, target: str) -> None:
        self.compose([source], target)

    def compose(self, sources: Sequence[str], target: str) -> None:
        names = [self._name(source) for source in sources]
        target_name, client = self._name(target), self._open()
        sizes = {name: self._size(source, name) for source, name in zip(sources, names, strict=True)}
        names = [name for name in names if sizes[name]]
        if not names:
            self.put(target, b"")
        elif names == [target_name]:
            pass  # S3 refuses to copy an object onto itself
        elif len(names) == 1 and sizes[names[0]] <= COPY_BYTES:
            with failing(target):
                client.copy_object(
                    bucket_name=self._bucket, object_name=target_name, source=CopySource(self._bucket, names[0])
                )
        elif all(sizes[name] >= PART_BYTES for name in names[:-1]):
            pieces = [piece for name in names for piece in self._pieces(name, sizes[name])]
            with failing(target):
                client.compose_object(bucket_name=self._bucket, object_name=target_name, sources=pieces)
        else:  # S3 does not compose sources that are smaller than a part, except the last
            with self.writer(target) as writer:
                for source in sources:
                    for chunk in self.stream(source):
                        writer.write(chunk)
                writer.commit()

    def _size(self, key: str, name: str) -> int:
        try:
            with failing(key):
                return self._client.stat_object(bucket_name=self._bucket, object_name=name).size or 0
        except ObjectNotFoundError:
            with failing(key):  # a HEAD does not distinguish a missing object from a missing bucket
                self._probe()
            raise

    def _pieces(self, name: str, size: int) -> Iterator[ComposeSource]:
        offset = 0
        while size - offset >= COPY_BYTES + PART_BYTES:  # so that what remains is not too small for a part
            yield ComposeSource(self._bucket, name, offset=offset, length=COPY_BYTES)
            offset += COPY_BYTES
        yield ComposeSource(self._bucket, name, offset=offset, length=size - offset)

    def delete(self, *keys: str) -> None:
        names = [self._name(key) for key in keys]
        if len(names) == 1:
            client = self._open()
            with contextlib.suppress(ObjectNotFoundError), failing(keys[0]):
                client.remove_object(bucket_name=self._bucket, object_name=names[0])
        elif names:
            self._delete(keys[0], iter(names))

    def delete_prefix(self, prefix: str) -> None:
        self._delete(prefix, (self._prefix + key for key in self.list(prefix)))

    def _delete(self, where: str, names: Iterator[str]) -> None:
        client = self._open()
        with failing(where):
            errors = client.remove_objects(
                bucket_name=self._bucket, delete_object_list=(DeleteObject(name) for name in names)
            )
            failed = [error.code for error in errors if error.code not in GONE]
        if failed:
            reason = reason_of_code(failed[0])
            raise StoreError.at(where, f"{len(failed)} objects not deleted: {reason}")

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        return self._entries(prefix, after, recursive=True)

    def list_backwards(self, prefix: str, before: str = "") -> Iterator[str]:
        """See the contract. S3 lists forwards only: one response is reversed, and longer lists go folder by folder."""
        keys = list(islice(self.list(prefix), _LISTED_AT_ONCE))
        if len(keys) < _LISTED_AT_ONCE:
            yield from (key for key in reversed(keys) if not before or key < before)
            return
        for key in reversed(list(self._entries(prefix, "", recursive=False))):
            if before and key >= before:
                continue
            if key.endswith("/"):
                yield from self.list_backwards(key, before)
            else:
                yield key

    def _entries(self, prefix: str, after: str, *, recursive: bool) -> Iterator[str]:
        """Yield the keys below a folder; if not ``recursive``, its direct keys, and its folders with a final ``/``."""
        for entry in self._objects(prefix, after, recursive=recursive):
            yield (entry.object_name or "").removeprefix(self._prefix)

    def bytes_below(self, prefix: str) -> int:
        return sum(entry.size or 0 for entry in self._objects(prefix, "", recursive=True))

    def _objects(self, prefix: str, after: str, *, recursive: bool) -> Iterator[Object]:
        found = self._open().list_objects(
            bucket_name=self._bucket,
            prefix=self._folder(prefix),
            recursive=recursive,
            start_after=self._prefix + after if after else None,
        )
        while True:
            with failing(prefix):
                entry = next(found, None)
            if entry is None:
                return
            yield entry

    def delete_stale(self) -> None:
        client, oldest = self._open(), datetime.now(UTC) - timedelta(seconds=STALE_SECONDS)
        more, marker = True, None
        while more:
            with failing("uploads"):
                # Pages continue by key alone, because the library drops the other marker. Uploads that are skipped by
                # that are found the next time.
                page = client._list_multipart_uploads(  # pyright: ignore[reportPrivateUsage]
                    bucket_name=self._bucket, prefix=self._prefix, key_marker=marker
                )
                for upload in page.uploads:
                    name = upload.object_name or ""
                    if self._is_ours(name) and upload.initiated_time and upload.initiated_time < oldest:
                        self._abort(name, upload.upload_id or "")
            more, marker = page.is_truncated and bool(page.next_key_marker), page.next_key_marker

    def _is_ours(self, name: str) -> bool:
        """Return whether an upload may belong to this store: other programs may share the bucket, and a server may
        list more than the requested prefix.
        """
        return name.startswith(self._prefix or MULTIPART_FOLDERS)

    def _abort(self, name: str, upload_id: str) -> None:
        try:
            self._client._abort_multipart_upload(bucket_name=self._bucket, object_name=name, upload_id=upload_id)  # pyright: ignore[reportPrivateUsage]
        except S3Error as error:
            if error.code != "NoSuchUpload":  # that one has ended in the meantime
                raise
