"""The interface of the object store, and what every implementation guarantees.

All calls block. Code on an event loop calls them through ``asyncio.to_thread``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from workflows.waits import Wait, store_wait

CHUNK: Final = 1 << 20
"""Bytes moved at a time."""

STORE_THREADS: Final = 32
"""Blocking store calls at once in a process. Most of their time is waiting for the disk or the network."""

STALE_SECONDS: Final = 24 * 3600
"""What a writer began so long ago, and has not committed, has nobody left who writes it."""

_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class StoreError(Exception):
    """The store failed: it is down, full, or refuses. A later attempt may succeed."""

    def __init__(self, message: str, condition: str = "", reason: str = "") -> None:
        """Args:
        message: for the log; it may name an object's key.
        condition: what is the matter, where it stays until an operator acts: ``its disk is full``. For clients too.
        reason: the message without a key.
        """
        super().__init__(message)
        self.condition = condition
        self.reason = condition or reason or message

    @classmethod
    def at(cls, key: str, said: str, condition: str = "") -> StoreError:
        """Args: ``said`` is what the system or the server says."""
        why = f"{condition} ({said})" if condition else said
        return cls(f"the store failed at {key}: {why}", condition, said)

    @property
    def wait(self) -> Wait:
        """What whoever needs the store waits for."""
        return store_wait(self.reason, is_lasting=bool(self.condition))


class ObjectNotFoundError(StoreError):
    """There is no object at this key."""

    def __init__(self, key: str) -> None:
        super().__init__(key, reason="an object of the batch is missing")


def checked_key(key: str) -> str:
    """The key, if it can be one.

    Raises:
        ObjectNotFoundError: keys may come from URLs, and nothing can be at this one.
    """
    if not all(_PART.fullmatch(part) for part in key.split("/")):
        raise ObjectNotFoundError(key[:200])
    return key


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
        ObjectNotFoundError: from every method that names one object to read.
    """

    @property
    def reads_at_once(self) -> int:
        """Small reads that are worth doing at once: more than one where each waits for a network."""
        ...

    def check(self) -> None:
        """Raise unless the store can be read and written just now."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, as :meth:`ObjectWriter.commit` does."""
        ...

    def put_new(self, key: str, data: bytes) -> bytes:
        """Write a small object unless there is one at its key, and give what is there: of many who write, one does.

        Its bytes may have been written by a call of one's own whose answer was lost.
        """
        ...

    def get(self, key: str) -> bytes:
        """A small object, whole."""
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

    def compose(self, sources: Sequence[str], target: str) -> None:
        """One object out of several, in order, inside the store where it can be; of none, an empty one.

        It becomes visible as :meth:`ObjectWriter.commit` says. The sources stay.
        """
        ...

    def delete(self, *keys: str) -> None:
        """Delete objects. One that is not there counts as deleted."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything below ``prefix``, which ends with a ``/``."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Keys that begin with ``prefix`` (which ends with a ``/``) and sort behind ``after``, in order.

        What is read of it is what it costs, up to a page of the server, or the folders on the way.
        """
        ...

    def list_backwards(self, prefix: str, before: str = "") -> Iterator[str]:
        """As :meth:`list`, from the last key on, of those that sort before ``before``."""
        ...

    def bytes_below(self, prefix: str) -> int:
        """Bytes of all objects below ``prefix`` (which ends with a ``/``). Costs as much as to list them."""
        ...

    def delete_stale(self) -> None:
        """Delete what writers that were killed more than a day ago have left, which no object can come of."""
        ...
