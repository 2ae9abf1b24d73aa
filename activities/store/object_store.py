"""The interface of the object store, and the guarantees of every implementation.

All calls block. Code on an event loop calls them through ``asyncio.to_thread``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from workflows.waits import Wait, store_wait

CHUNK: Final = 1 << 20
"""Number of bytes that are read or copied at a time."""

STORE_THREADS: Final = 32
"""Maximum number of concurrent store calls of one event loop. They mostly wait for disk or network."""

STALE_SECONDS: Final = 24 * 3600
"""Age in seconds from which uncommitted data is assumed to be left over from a writer that no longer exists."""

_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class StoreError(Exception):
    """The store failed: it is down, full, or refuses the call. A later attempt may succeed."""

    def __init__(self, message: str, condition: str = "", reason: str = "") -> None:
        """Args:
        message: the text for the log; it may contain an object's key.
        condition: a condition that lasts until an operator acts, such as ``its disk is full``. Clients may see it.
        reason: the message without a key. Clients may see it.
        """
        super().__init__(message)
        self.condition = condition
        self.reason = condition or reason or message

    @classmethod
    def at(cls, key: str, text: str, condition: str = "") -> StoreError:
        """Return an error about an object. Args: ``text`` is the text of the operating system or the server."""
        why = f"{condition} ({text})" if condition else text
        return cls(f"the store failed at {key}: {why}", condition, text)

    @property
    def wait(self) -> Wait:
        """The wait of anything that needs the store."""
        return store_wait(self.reason, is_lasting=bool(self.condition))


class ObjectNotFoundError(StoreError):
    """There is no object at this key."""

    def __init__(self, key: str) -> None:
        super().__init__(key, reason="an object of the batch is missing")


def checked_key(key: str) -> str:
    """Return the key if it is valid.

    Raises:
        ObjectNotFoundError: the key is not valid, so no object can exist there. Keys may come from URLs.
    """
    if not all(_PART.fullmatch(part) for part in key.split("/")):
        raise ObjectNotFoundError(key[:200])
    return key


class ObjectWriter(Protocol):
    """Writes an object's bytes in order. Nothing is visible until :meth:`commit`."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    def write(self, data: bytes) -> None: ...

    def commit(self) -> None:
        """Make the whole object visible, durably even across a power failure. Replaces an object at the same key."""
        ...

    def abort(self) -> None:
        """Discard what was written. Does nothing after a commit."""
        ...


class ObjectStore(Protocol):
    """Keys are ``/``-separated; each segment consists of ``A-Z a-z 0-9 . _ -`` and does not begin with a dot.

    Raises:
        StoreError: from every method, when the store cannot be used.
        ObjectNotFoundError: from every method that names one object to read.
    """

    @property
    def reads_at_once(self) -> int:
        """Number of small reads that are worth doing concurrently: more than 1 if each waits for a network."""
        ...

    def check(self) -> None:
        """Raise :class:`StoreError` unless the store can currently be read and written."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, with the guarantees of :meth:`ObjectWriter.commit`."""
        ...

    def put_new(self, key: str, data: bytes) -> bytes:
        """Write a small object unless its key is taken, and return the stored bytes. Of concurrent writers, one wins.

        The stored bytes may come from an earlier call by the same caller, if the response to that call was lost.
        """
        ...

    def get(self, key: str) -> bytes:
        """Return all bytes of a small object."""
        ...

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the object's bytes from ``offset`` in chunks. A missing object raises here, not at the first chunk."""
        ...

    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Return a writer that is aborted if the context ends without a commit."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store without moving its bytes through this process."""
        ...

    def compose(self, sources: Sequence[str], target: str) -> None:
        """Concatenate objects into one, inside the store if possible. Without sources, the result is an empty object.

        The target has the guarantees of :meth:`ObjectWriter.commit`. The sources remain.
        """
        ...

    def delete(self, *keys: str) -> None:
        """Delete objects. An object that does not exist counts as deleted."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything below ``prefix``, which ends with a ``/``."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Yield the keys that begin with ``prefix`` (which ends with a ``/``) and sort after ``after``, in order.

        The cost is that of the keys that are consumed, rounded up to a page of the server or to the folders read.
        """
        ...

    def list_backwards(self, prefix: str, before: str = "") -> Iterator[str]:
        """Yield the keys below ``prefix`` that sort before ``before``, in reverse order; else like :meth:`list`."""
        ...

    def bytes_below(self, prefix: str) -> int:
        """Return the bytes of all objects below ``prefix`` (which ends with a ``/``). Costs as much as listing them."""
        ...

    def delete_stale(self) -> None:
        """Delete the uncommitted data of writers that were killed more than a day ago."""
        ...
