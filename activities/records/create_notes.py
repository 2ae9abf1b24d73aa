"""Notes about requests to create a batch that have arrived, but whose response may not have reached the client.

If a response is lost, OpenAI's SDK sends the request again, without an idempotency key. Such a resend can be matched to
an earlier request only if that one arrived. So each request is noted before it has any effect, and its note is deleted
once the response has been sent to a client that was still connected. A note is an empty object with the key
``creates/<tenant>/<digest>/<time>-<tries>-<batch id>``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from activities.store.object_store import ObjectStore
from workflows.ids import create_digest
from workflows.types import BatchSpec

KEPT_SECONDS: Final = 6 * 3600
"""Seconds after which a client is assumed not to send the request again."""
_PREFIX: Final = "creates/"


class CreateNote(NamedTuple):
    key: str
    batch_id: str
    created_ms: int
    tries: int
    """Number of times that the client had sent the same request before."""


class CreateNotes:
    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def add(self, spec: BatchSpec, tries: int) -> CreateNote:
        """Args: see :attr:`CreateNote.tries` for ``tries``."""
        key = f"{_folder(spec)}{spec.created_ms:013d}-{tries}-{spec.batch_id}"
        self._store.put(key, b"")
        return CreateNote(key, spec.batch_id, spec.created_ms, tries)

    def remove(self, note: CreateNote) -> None:
        """Delete the note of a request that was answered or had no effect, so that no resend is matched to it."""
        self._store.delete(note.key)

    def find(self, spec: BatchSpec) -> list[CreateNote]:
        """Return the notes of equal requests of the same tenant, oldest first."""
        return [_note(key) for key in self._store.list(_folder(spec))]

    def remove_old(self) -> None:
        """Delete the notes of all tenants that are older than ``KEPT_SECONDS``."""
        oldest = (self._clock() - KEPT_SECONDS) * 1000
        for key in self._store.list(_PREFIX):
            if _note(key).created_ms < oldest:
                self._store.delete(key)


def _folder(spec: BatchSpec) -> str:
    digest = create_digest({"digest": spec.digest, "input": spec.input_sha256 or spec.input_file_id})
    return f"{_PREFIX}{spec.tenant}/{digest}/"


def _note(key: str) -> CreateNote:
    created_ms, tries, batch_id = key.rpartition("/")[2].split("-", 2)
    return CreateNote(key, batch_id, int(created_ms), int(tries))
