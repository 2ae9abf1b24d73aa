"""The object store as a port: what every implementation promises.

All calls block. Code on an event loop calls them through ``asyncio.to_thread``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from activities.settings import Settings

CHUNK = 1 << 20
"""Bytes moved at a time."""


class StoreError(Exception):
    """The store did not do as asked: it is away, full, or refuses. Trying again later may help."""


class ObjectNotFound(StoreError):
    """There is no object at this key."""


class ObjectWriter(Protocol):
    """Takes an object's bytes in order. Nothing is visible until :meth:`commit`."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    def write(self, data: bytes) -> None: ...

    def commit(self) -> None:
        """Make the object visible, whole, surviving a power cut. It replaces an older one of the same key."""
        ...

    def abort(self) -> None:
        """Drop what was written. Does nothing after a commit."""
        ...


class ObjectStore(Protocol):
    """Keys are ``/``-separated; each part is of ``A-Z a-z 0-9 . _ -`` and does not begin with a dot.

    Raises:
        StoreError: from every method, when the store cannot be used.
        ObjectNotFound: from every method that names one object to read.
    """

    def check(self) -> None:
        """Raise unless the store can be read and written just now."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, as :meth:`ObjectWriter.commit` does."""
        ...

    def get(self, key: str) -> bytes:
        """A small object, whole."""
        ...

    def size(self, key: str) -> int:
        """Bytes in the object."""
        ...

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object's bytes from ``offset``, in chunks; a missing object raises here, not at the first chunk."""
        ...

    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """A writer that is aborted when its block ends without a commit."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store without moving its bytes through this process."""
        ...

    def delete(self, key: str) -> bool:
        """Whether there was something to delete."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything below ``prefix``, which ends with a ``/``."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Keys that begin with ``prefix`` (which ends with a ``/``) and sort behind ``after``, in order."""
        ...


def open_store(settings: Settings) -> ObjectStore:
    """The store that ``EVERBATCH_STORE`` names.

    Raises:
        ValueError: the address is of a kind that is not there.
    """
    if "://" in settings.store_address:
        raise ValueError(f"EVERBATCH_STORE={settings.store_address!r}: only a folder is supported")
    from activities.storage_local import LocalStore

    store = LocalStore(settings.store_address)
    store.delete_stale()
    return store
