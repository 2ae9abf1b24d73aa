"""The object store in a directory: the default, safe for several processes on one machine.

An object is written to a temporary file, which is synced and renamed into place; then its folder is synced. So after a
power failure the whole object exists or none of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

from activities.store.object_store import (
    CHUNK,
    STALE_SECONDS,
    ObjectNotFoundError,
    ObjectWriter,
    StoreError,
    checked_key,
)

RENAME_TRIES: Final = 100

COPY_BYTES: Final = 1 << 30
"""Bytes that the operating system is asked to copy at a time; it may copy fewer."""

_CONDITIONS: Final = {
    errno.ENOSPC: "its disk is full",
    errno.EDQUOT: "its disk quota is used up",
    errno.EROFS: "it is read-only",
    errno.ENOENT: "its directory is missing",
}

_HAS_COPY_RANGE: Final = hasattr(os, "copy_file_range")
_NO_COPY_RANGE: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


@contextlib.contextmanager
def _failing(key: str) -> Generator[None]:
    try:
        yield
    except OSError as error:  # including "not found": here it is a folder that is missing, not an object
        raise _failure(key, error) from None


def _failure(key: str, error: OSError) -> StoreError:
    # The text leaves out the path, and callers do not chain the original error, which contains it: both may reach the
    # Temporal UI, because Temporal stores causes too.
    return StoreError.at(key, error.strerror or type(error).__name__, _CONDITIONS.get(error.errno or 0, ""))


def _sync(path: str | Path) -> None:
    """Sync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, and sync each parent in which one is created."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)  # only the owner may read prompts and answers; mkstemp creates files like that
    _sync(folder.parent)


def _move(source: str, target: Path) -> None:
    """Move a file to its target durably, and create missing folders. Retries, as a delete removes empty folders."""
    for tries_left in reversed(range(RENAME_TRIES)):
        try:
            os.replace(source, target)
            break
        except FileNotFoundError:  # the folder is missing or was just removed, unless the whole store is missing
            if not tries_left or not os.path.exists(source):
                raise
        with contextlib.suppress(FileNotFoundError):  # its parent was just removed
            _make_folder(target.parent)
    with contextlib.suppress(FileNotFoundError):  # the file and its folder have already been deleted
        _sync(target.parent)


class _LocalWriter:
    def __init__(self, key: str, target: Path, descriptor: int, temporary: str) -> None:
        self._key = key
        self._target = target
        self._temporary: str | None = temporary
        self._file = open(descriptor, "wb", buffering=CHUNK)  # noqa: SIM115 - closed by commit or abort
        self.size = 0

    def write(self, data: bytes) -> None:
        with _failing(self._key):
            self._file.write(data)
        self.size += len(data)

    def take(self, descriptor: int) -> None:
        """Append all bytes of an open file, inside the operating system if it can."""
        with _failing(self._key):
            self._file.flush()
            try:
                while _HAS_COPY_RANGE and os.copy_file_range(descriptor, self._file.fileno(), COPY_BYTES):
                    pass
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
            # Copy what is left: nothing, or everything from the current offsets if the system cannot copy.
            while data := os.read(descriptor, CHUNK):
                self._file.write(data)
            self.size += os.lseek(descriptor, 0, os.SEEK_CUR)

    def commit(self) -> None:
        assert self._temporary, "a writer commits once"
        with _failing(self._key):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            _move(self._temporary, self._target)
        self._temporary = None

    def abort(self) -> None:
        if self._temporary:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            self._temporary = None


class _Chunks:
    """Iterates over a file's bytes. Closing or dropping the iterator closes the file, at any point."""

    def __init__(self, key: str, descriptor: int, offset: int, length: int | None) -> None:
        self._key = key
        self._descriptor = descriptor
        self._offset = offset
        self._left = length
        os.pread(descriptor, 0, 0)  # fails for a folder

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with _failing(self._key):
            data = os.pread(self._descriptor, CHUNK if self._left is None else min(CHUNK, self._left), self._offset)
        if not data:
            raise StopIteration
        self._offset += len(data)
        if self._left is not None:
            self._left -= len(data)
        return data

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


class LocalStore:
    """See :class:`activities.store.object_store.ObjectStore` for the contract."""

    reads_at_once = 1

    def __init__(self, root: str) -> None:
        self._root = Path(root).absolute()
        self._temporary = self._root / ".tmp"
        self._was_there = False

    def _check_there(self) -> None:
        """Distinguish a missing object from a missing store: an unmounted volume looks like an empty store.

        Raises:
            StoreError: the root contained the folder for temporary files before, and is empty or missing now.
        """
        if self._temporary.is_dir():
            self._was_there = True
        elif self._was_there and not (self._root.is_dir() and any(self._root.iterdir())):
            raise StoreError("the store's directory is empty or missing", "its directory is empty or missing")

    @contextlib.contextmanager
    def _reading(self, key: str) -> Generator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            with _failing(key):
                self._check_there()
            raise ObjectNotFoundError(key) from None
        except OSError as error:
            raise _failure(key, error) from None

    def _make_temporary(self) -> None:
        self._check_there()
        _make_folder(self._temporary)
        self._was_there = True

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def check(self) -> None:
        with _failing("check"):
            self._make_temporary()
            with tempfile.TemporaryFile(dir=self._temporary, buffering=0) as file:
                file.write(bytes(4096))  # a full disk still accepts an empty file

    def put(self, key: str, data: bytes) -> None:
        with self.writer(key) as writer:
            writer.write(data)
            writer.commit()

    def put_new(self, key: str, data: bytes) -> bytes:
        target = self._path(key)
        while True:
            with contextlib.suppress(ObjectNotFoundError):
                return self.get(key)
            with self.writer(key) as writer:
                assert isinstance(writer, _LocalWriter)
                writer.write(data)
                # Creates are serialized by a lock across processes, because not every file system has hard links.
                with _failing(key), self._creating():
                    if not target.exists():
                        writer.commit()
                        return data

    @contextlib.contextmanager
    def _creating(self) -> Generator[None]:
        descriptor = os.open(self._temporary, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def get(self, key: str) -> bytes:
        with self._reading(key):
            return self._path(key).read_bytes()

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        path = self._path(key)
        with self._reading(key):
            return _Chunks(key, os.open(path, os.O_RDONLY), offset, length)

    @contextlib.contextmanager
    def writer(self, key: str) -> Generator[ObjectWriter]:
        target = self._path(key)
        with _failing(key):
            self._make_temporary()
            descriptor, temporary = tempfile.mkstemp(dir=self._temporary)
        writer = _LocalWriter(key, target, descriptor, temporary)
        try:
            yield writer
        finally:
            writer.abort()

    def copy(self, source: str, target: str) -> None:
        # Objects are never changed in place, only replaced as a whole, so a hard link is as good as a copy.
        original, path = self._path(source), self._path(target)
        with _failing(target):
            self._make_temporary()
            with tempfile.TemporaryDirectory(dir=self._temporary) as folder:
                name = f"{folder}/copy"
                with self._reading(source):
                    try:
                        os.link(original, name)
                    except FileNotFoundError:
                        raise
                    except OSError:  # a file system without hard links
                        shutil.copyfile(original, name)
                        _sync(name)
                        os.chmod(name, 0o600)
                _move(name, path)

    def compose(self, sources: Sequence[str], target: str) -> None:
        if len(sources) == 1:
            self.copy(sources[0], target)
            return
        paths = [self._path(source) for source in sources]
        with self.writer(target) as writer:
            assert isinstance(writer, _LocalWriter)
            for source, path in zip(sources, paths, strict=True):
                with self._reading(source):
                    file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the block below
                with file:
                    writer.take(file.fileno())
            writer.commit()

    def delete(self, *keys: str) -> None:
        for key in keys:
            path = self._path(key)
            with contextlib.suppress(ObjectNotFoundError):
                with self._reading(key):
                    path.unlink()
                self._drop_empty_folders(path.parent)

    def delete_prefix(self, prefix: str) -> None:
        for key in self.list(prefix):
            self.delete(key)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        return self._names(prefix, after, backwards=False)

    def list_backwards(self, prefix: str, before: str = "") -> Iterator[str]:
        return self._names(prefix, before, backwards=True)

    def _names(self, prefix: str, bound: str, *, backwards: bool) -> Iterator[str]:
        folder = self._path(prefix.rstrip("/"))
        if bound and not bound.startswith(prefix):
            if (bound > prefix) != backwards:
                return
            bound = ""
        inside = bound.removeprefix(prefix) if bound else None
        yield from (prefix + name for name in self._walk(folder, inside, backwards=backwards))

    def bytes_below(self, prefix: str) -> int:
        total = 0
        for key in self.list(prefix):
            with contextlib.suppress(FileNotFoundError):  # deleted in the meantime
                total += self._path(key).stat().st_size
        return total

    def delete_stale(self) -> None:
        with contextlib.suppress(OSError), os.scandir(self._temporary) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime < STALE_SECONDS:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)

    def _walk(self, folder: Path, bound: str | None, *, backwards: bool) -> Iterator[str]:
        """Yield the names below a folder after ``bound``, or before it if ``backwards``. Reads only what it needs."""
        try:
            with self._reading(str(folder.relative_to(self._root))), os.scandir(folder) as entries:
                # Sort folders with their slash, so that keys sort as in S3: `a.b` comes before `a/b`.
                names = sorted((entry.name + ("/" if entry.is_dir() else "") for entry in entries), reverse=backwards)
        except ObjectNotFoundError:
            return
        for name in names:
            inside = None
            if bound is not None:
                if name.endswith("/") and bound.startswith(name):
                    inside = bound.removeprefix(name)
                elif name >= bound if backwards else name <= bound:
                    continue
            if name.endswith("/"):
                yield from (name + below for below in self._walk(folder / name, inside, backwards=backwards))
            else:
                yield name

    def _drop_empty_folders(self, folder: Path) -> None:
        # Only empty folders can be removed, so a race costs a concurrent writer no more than another mkdir.
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent
