"""What the store holds and where: object keys, file and batch records, and the index that lists them.

The one module that derives keys::

    files/<tenant>/<file id>/{object.json,content}
    batches/<tenant>/<batch id>/created.json      what the client asked for, written by the API and again by the worker
    batches/<tenant>/<batch id>/running.json      written once the input is valid
    batches/<tenant>/<batch id>/record.json       the final record, written with the result files
    batches/<tenant>/<batch id>/cancelling        when the client asked for it; read while no worker is up
    batches/<tenant>/<batch id>/input             private copy: a file may be deleted while its batch runs
    batches/<tenant>/<batch id>/shards.json
    batches/<tenant>/<batch id>/parts/<shard>/<attempt>-<n>
    batches/<tenant>/<batch id>/results/<shard>/<attempt>
    index/<tenant>/{files,batches}/<inverted time>-<id>
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from activities.storage import ObjectNotFound, ObjectStore
from workflows.types import BatchRecord, BatchSpec, BatchStatus, Shard

Kind = Literal["files", "batches"]

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LAST_MS = 9_999_999_999_999
_SHARDS = TypeAdapter(list[Shard])


class FileRecord(BaseModel):
    """A stored file, without its bytes."""

    model_config = ConfigDict(frozen=True)

    id: str
    bytes: int
    created_ms: int
    filename: str
    purpose: str
    expires_at: int | None = None
    """Unix seconds."""
    lines: int | None = None
    """Of an upload, blank ones included."""
    digest: str = ""
    """Of an upload: tells a repeated one from another with the same idempotency key."""


def content_key(tenant: str, file_id: str) -> str:
    return f"files/{tenant}/{_checked(file_id)}/content"


def input_key(tenant: str, batch_id: str) -> str:
    return f"{_batch_prefix(tenant, batch_id)}input"


def parts_prefix(tenant: str, batch_id: str, shard: int) -> str:
    return f"{_batch_prefix(tenant, batch_id)}parts/{shard:06d}/"


def part_key(tenant: str, batch_id: str, shard: int, attempt: str, number: int) -> str:
    return f"{parts_prefix(tenant, batch_id, shard)}{attempt}-{number:06d}"


def results_prefix(tenant: str, batch_id: str, shard: int) -> str:
    return f"{_batch_prefix(tenant, batch_id)}results/{shard:06d}/"


def result_key(tenant: str, batch_id: str, shard: int, attempt: str) -> str:
    return f"{results_prefix(tenant, batch_id, shard)}{attempt}"


def attempt_of(result_key: str) -> str:
    """The attempt that wrote a result object."""
    return result_key.rsplit("/", 1)[1]


def attempt_name(number: int) -> str:
    """A name that no other attempt has.

    Temporal's number alone is not enough: a shard that is scheduled anew (its batch was paused, its workflow reset)
    counts from one again, perhaps while an attempt of before still runs somewhere.
    """
    return f"{number:06d}-{secrets.token_hex(4)}"


def _batch_prefix(tenant: str, batch_id: str) -> str:
    return f"batches/{tenant}/{_checked(batch_id)}/"


def _checked(object_id: str) -> str:
    # Ids come from URLs. One that could not have been made here names nothing.
    if not _ID.fullmatch(object_id):
        raise ObjectNotFound(object_id[:80])
    return object_id


def _index_prefix(tenant: str, kind: Kind) -> str:
    return f"index/{tenant}/{kind}/"


def _index_key(tenant: str, kind: Kind, object_id: str, created_ms: int) -> str:
    return f"{_index_prefix(tenant, kind)}{_LAST_MS - created_ms:013d}-{object_id}"


class Catalog:
    """Records of files and batches in a store. All calls block.

    Raises:
        ObjectNotFound: from the getters, for an id that is not there.
        StoreError: from every method, when the store cannot be used.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    # Files

    # An index entry without its record is passed over, so the record, which makes a thing be there, is written last.

    def save_file(self, tenant: str, record: FileRecord, replaced: FileRecord | None = None) -> None:
        """Publish a file whose content is in the store already, in the place of one with its id."""
        if replaced:
            self.store.delete(_index_key(tenant, "files", replaced.id, replaced.created_ms))
        self.store.put(_index_key(tenant, "files", record.id, record.created_ms), b"")
        self.store.put(f"files/{tenant}/{record.id}/object.json", record.model_dump_json().encode())

    def get_file(self, tenant: str, file_id: str) -> FileRecord:
        return FileRecord.model_validate_json(self.store.get(f"files/{tenant}/{_checked(file_id)}/object.json"))

    def delete_file(self, tenant: str, file_id: str) -> None:
        self.drop_file(tenant, self.get_file(tenant, file_id))

    def drop_file(self, tenant: str, record: FileRecord) -> None:
        """Delete a file, however much of it there is."""
        # The record goes first: a crash between the steps leaves bytes nobody can name, not a name without bytes.
        self.store.delete(f"files/{tenant}/{record.id}/object.json")
        self.store.delete(_index_key(tenant, "files", record.id, record.created_ms))
        self.store.delete(content_key(tenant, record.id))

    def list_files(self, tenant: str, *, after: FileRecord | None, ascending: bool = False) -> Iterator[FileRecord]:
        """Files created before ``after`` (behind it, where ``ascending``), newest first unless ``ascending``."""
        position = (after.id, after.created_ms) if after else None
        for file_id, created_ms in self._list(tenant, "files", position, ascending):
            try:
                record = self.get_file(tenant, file_id)
            except ObjectNotFound:
                continue  # deleted since it was listed
            if record.created_ms == created_ms:  # else left over from an earlier file of this id, or an earlier try
                yield record

    # Batches

    # A batch's record is three objects, each written for one moment of its life and never with other content,
    # so that no late writer (a slow API process, a worker that was suspended) can take a batch back in time.

    def create_batch(self, spec: BatchSpec) -> None:
        """Make a batch known and listed. Doing it again changes nothing."""
        self.store.put(_index_key(spec.tenant, "batches", spec.batch_id, spec.created_ms), b"")
        self._save("created.json", BatchRecord(spec=spec, status=BatchStatus()))

    def save_running(self, record: BatchRecord) -> None:
        self._save("running.json", record)

    def save_final(self, record: BatchRecord) -> None:
        self._save("record.json", record)

    def get_final(self, tenant: str, batch_id: str) -> BatchRecord | None:
        """The record in its terminal state, if the batch has come to it."""
        try:
            return self._load(tenant, batch_id, "record.json")
        except ObjectNotFound:
            return None

    def get_batch(self, tenant: str, batch_id: str) -> BatchRecord:
        """The newest of the batch's records."""
        for name in ("record.json", "running.json"):
            with contextlib.suppress(ObjectNotFound):
                return self._load(tenant, batch_id, name)
        return self._load(tenant, batch_id, "created.json")

    def _save(self, name: str, record: BatchRecord) -> None:
        prefix = _batch_prefix(record.spec.tenant, record.spec.batch_id)
        self.store.put(prefix + name, record.model_dump_json().encode())

    def _load(self, tenant: str, batch_id: str, name: str) -> BatchRecord:
        return BatchRecord.model_validate_json(self.store.get(_batch_prefix(tenant, batch_id) + name))

    def list_batches(self, tenant: str, *, after: BatchRecord | None, ascending: bool = False) -> Iterator[BatchRecord]:
        """As :meth:`list_files`."""
        position = (after.spec.batch_id, after.spec.created_ms) if after else None
        for batch_id, _ in self._list(tenant, "batches", position, ascending):
            try:
                yield self.get_batch(tenant, batch_id)
            except ObjectNotFound:
                continue

    def request_cancel(self, tenant: str, batch_id: str, at: int) -> None:
        """Note when a client first cancelled, for answers while no worker is there to be asked."""
        if self.cancel_requested_at(tenant, batch_id) is None:
            self.store.put(f"{_batch_prefix(tenant, batch_id)}cancelling", str(at).encode())

    def cancel_requested_at(self, tenant: str, batch_id: str) -> int | None:
        try:
            return int(self.store.get(f"{_batch_prefix(tenant, batch_id)}cancelling"))
        except ObjectNotFound:
            return None

    def save_shards(self, tenant: str, batch_id: str, shards: list[Shard]) -> None:
        self.store.put(f"{_batch_prefix(tenant, batch_id)}shards.json", _SHARDS.dump_json(shards))

    def get_shards(self, tenant: str, batch_id: str) -> list[Shard]:
        return _SHARDS.validate_json(self.store.get(f"{_batch_prefix(tenant, batch_id)}shards.json"))

    def delete_leftovers(self, tenant: str, batch_id: str) -> None:
        """Delete what only a running batch needs. The record stays."""
        prefix = _batch_prefix(tenant, batch_id)
        # The input first: an attempt that still writes the files needs it to take a shard for unanswered, so none
        # can mistake what is deleted next for what was never answered.
        for name in ("input", "shards.json", "cancelling"):
            self.store.delete(f"{prefix}{name}")
        self.store.delete_prefix(f"{prefix}parts/")
        self.store.delete_prefix(f"{prefix}results/")

    def _list(
        self, tenant: str, kind: Kind, after: tuple[str, int] | None, ascending: bool
    ) -> Iterator[tuple[str, int]]:
        """Ids and the milliseconds they were made in."""
        prefix = _index_prefix(tenant, kind)
        position = _index_key(tenant, kind, *after) if after else ""
        if ascending:  # keys sort newest first, so this order costs a full listing
            keys = reversed([key for key in self.store.list(prefix) if not position or key < position])
        else:
            keys = self.store.list(prefix, after=position)
        for key in keys:
            inverted, _, object_id = key.removeprefix(prefix).partition("-")
            yield object_id, _LAST_MS - int(inverted)
