"""The object store in a folder: the embedded default, safe for several processes on one machine.

An object is written to a temporary file, synced, renamed into place, and its folder synced, so that after a
power cut it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

from activities.storage import CHUNK, ObjectNotFound, ObjectWriter, StoreError

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@contextlib.contextmanager
def _store_errors(key: str) -> Generator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ObjectNotFound(key) from error
    except OSError as error:
        # The operating system's words without the path: the text may reach the Temporal UI.
        raise StoreError(f"the store failed at {key}: {error.strerror or type(error).__name__}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each entry synced into its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync_folder(folder.parent)


class _LocalWriter:
    def __init__(self, key: str, target: Path, descriptor: int, temporary: str) -> None:
        self._key = key
        self._target = target
        self._temporary: str | None = temporary
        self._file = open(descriptor, "wb", buffering=CHUNK)  # noqa: SIM115 - closed by commit or abort
        self.size = 0

    def write(self, data: bytes) -> None:
        with _store_errors(self._key):
            self._file.write(data)
        self.size += len(data)

    def commit(self) -> None:
        assert self._temporary, "a writer commits once"
        with _store_errors(self._key):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        for last_try in (False, True):
            with _store_errors(self._key):
                _make_folder(self._target.parent)
            try:
                os.replace(self._temporary, self._target)
                break
            except FileNotFoundError:
                # `delete` removes folders that it empties, perhaps this one a moment ago.
                if last_try:
                    raise StoreError(f"the store failed at {self._key}: its folder vanishes") from None
            except OSError as error:
                raise StoreError(f"the store failed at {self._key}: {error.strerror}") from error
        self._temporary = None
        # The folder may be emptied and removed by a delete right after; then there is nothing left to sync.
        with contextlib.suppress(FileNotFoundError), _store_errors_but_missing(self._key):
            _sync_folder(self._target.parent)

    def abort(self) -> None:
        if self._temporary:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            self._temporary = None


@contextlib.contextmanager
def _store_errors_but_missing(key: str) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"the store failed at {key}: {error.strerror}") from error


class LocalStore:
    """See :class:`activities.storage.ObjectStore` for the contract."""

    def __init__(self, root: str) -> None:
        self._root = Path(root).absolute()
        self._temporary = self._root / ".tmp"

    def _path(self, key: str) -> Path:
        if not all(_PART.fullmatch(part) for part in key.split("/")):
            raise ObjectNotFound(key[:200])
        return self._root / key

    def check(self) -> None:
        with self.writer("check") as writer:
            writer.write(b"")

    def put(self, key: str, data: bytes) -> None:
        with self.writer(key) as writer:
            writer.write(data)
            writer.commit()

    def get(self, key: str) -> bytes:
        with _store_errors(key):
            return self._path(key).read_bytes()

    def size(self, key: str) -> int:
        with _store_errors(key):
            return self._path(key).stat().st_size

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        with _store_errors(key):
            file = open(self._path(key), "rb", buffering=0)  # noqa: SIM115 - closed by the generator

        def chunks() -> Iterator[bytes]:
            left = length
            with file, _store_errors(key):
                file.seek(offset)
                while left is None or left > 0:
                    data = file.read(CHUNK if left is None else min(CHUNK, left))
                    if not data:
                        return
                    if left is not None:
                        left -= len(data)
                    yield data

        return chunks()

    @contextlib.contextmanager
    def writer(self, key: str) -> Generator[ObjectWriter]:
        target = self._path(key)
        with _store_errors(key):
            _make_folder(self._temporary)
            descriptor, temporary = tempfile.mkstemp(dir=self._temporary)
        writer = _LocalWriter(key, target, descriptor, temporary)
        try:
            yield writer
        finally:
            writer.abort()

    def copy(self, source: str, target: str) -> None:
        # Objects are replaced whole and never changed in place, so a second name for the same bytes is a copy.
        original, path = self._path(source), self._path(target)
        with _store_errors(source):
            _make_folder(path.parent)
            _make_folder(self._temporary)
            with tempfile.TemporaryDirectory(dir=self._temporary) as folder:
                name = Path(folder) / "copy"
                try:
                    os.link(original, name)
                except FileNotFoundError:
                    raise
                except OSError:  # a file system without hard links
                    shutil.copyfile(original, name)
                os.replace(name, path)
            _sync_folder(path.parent)

    def delete(self, key: str) -> bool:
        path = self._path(key)
        try:
            with _store_errors(key):
                path.unlink()
        except ObjectNotFound:
            return False
        self._drop_empty_folders(path.parent)
        return True

    def delete_prefix(self, prefix: str) -> None:
        folder = self._path(prefix.rstrip("/"))
        shutil.rmtree(folder, ignore_errors=True)  # what another process deletes meanwhile is no error
        self._drop_empty_folders(folder.parent)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        folder = self._path(prefix.rstrip("/"))
        for name in self._walk(folder):
            key = prefix + name
            if key > after:
                yield key

    def _walk(self, folder: Path) -> Iterator[str]:
        try:
            with _store_errors(str(folder.relative_to(self._root))), os.scandir(folder) as entries:
                # A folder sorts as its keys do, with the slash: `a.b` is before `a/b`, as in S3.
                names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
        except ObjectNotFound:
            return
        for name in names:
            if name.endswith("/"):
                yield from (name + below for below in self._walk(folder / name))
            else:
                yield name

    def _drop_empty_folders(self, folder: Path) -> None:
        # Only what is empty can be removed, so a race with a writer costs the writer one more mkdir.
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent
