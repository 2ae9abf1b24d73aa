"""Notes of creates of batches that have arrived but may not have been answered.

OpenAI's SDK sends a create again when its answer is lost, without an idempotency key. Such a resend belongs to an
earlier try only where that try arrived. So each is noted before anything comes of it, and its note goes once its
answer has been sent to a client that was still there. A note is an empty object,
``creates/<tenant>/<digest>/<time>-<tries>-<batch id>``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from activities.store.object_store import ObjectStore
from workflows.types import BatchSpec

KEPT_SECONDS: Final = 6 * 3600
"""After which nobody sends a create again."""
_PREFIX: Final = "creates/"


class CreateNote(NamedTuple):
    key: str
    batch_id: str
    created_ms: int
    tries: int
    """Of the same create before it."""


class CreateNotes:
    """All calls block.

    Raises:
        StoreError: from every method, when the store cannot be used.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def add(self, spec: BatchSpec, digest: str, tries: int) -> CreateNote:
        """Args:
        spec: what the create asks for.
        digest: of all that the client wrote.
        tries: how often its client had sent it before.
        """
        key = f"{_PREFIX}{spec.tenant}/{digest}/{spec.created_ms:013d}-{tries}-{spec.batch_id}"
        self._store.put(key, b"")
        return CreateNote(key, spec.batch_id, spec.created_ms, tries)

    def remove(self, note: CreateNote) -> None:
        """The create has been answered, or nothing is to come of it: no resend belongs to it."""
        self._store.delete(note.key)

    def find(self, tenant: str, digest: str) -> list[CreateNote]:
        """Oldest first."""
        return [_note(key) for key in self._store.list(f"{_PREFIX}{tenant}/{digest}/")]

    def remove_old(self) -> None:
        """Of all tenants, those that nobody sends again any more."""
        oldest = (self._clock() - KEPT_SECONDS) * 1000
        for key in self._store.list(_PREFIX):
            if _note(key).created_ms < oldest:
                self._store.delete(key)


def _note(key: str) -> CreateNote:
    created_ms, tries, batch_id = key.rpartition("/")[2].split("-", 2)
    return CreateNote(key, batch_id, int(created_ms), int(tries))
