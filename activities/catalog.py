"""What the store holds and where: object keys, file and batch records, and the index that lists them.

The one module that derives keys::

    files/<tenant>/<file id>/{object.json,content}
    files/<tenant>/<file id>/deleting             while the janitor deletes the file
    batches/<tenant>/<batch id>/created.json      what the client asked for, written by the API and again by the worker
    batches/<tenant>/<batch id>/running.json      written once the input is valid
    batches/<tenant>/<batch id>/record.json       the final record, written with the result files
    batches/<tenant>/<batch id>/cancelling        when the client asked for it; read while no worker is up
    batches/<tenant>/<batch id>/input             private copy: a file may be deleted while its batch runs
    batches/<tenant>/<batch id>/shards.json
    batches/<tenant>/<batch id>/plans/<attempt>   of a batch for several upstreams, instead of shards.json
    batches/<tenant>/<batch id>/parts/<shard>/<attempt>-<n>
    batches/<tenant>/<batch id>/results/<shard>/<attempt>
    uploads/<tenant>/<upload id>/{created.json,completed.json,cancelled}
    uploads/<tenant>/<upload id>/parts/<part id>
    uploads/<tenant>/<upload id>/arrived/<part id>-<bytes>-<newlines>-<open>     written behind the part
    index/<tenant>/{files,batches}/<inverted time>-<id>     of a batch: the digest of its create
    active/<tenant>/<batch id>                    number of requests, while the batch runs; where there are tenants
    due/<hour>/<time>.<kind>.<tenant>.<id>        for the janitor: :mod:`activities.reminders`
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from activities.read_ahead import read_ahead
from activities.reminders import PREFIX, DueKind, Reminder
from activities.storage import ObjectNotFound, ObjectStore
from workflows.types import BatchRecord, BatchSpec, BatchStatus, Shard

Kind = Literal["files", "batches"]

PUBLISHED_SECONDS = 24 * 3600
"""After which content that has no record yet will get none."""

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

    @property
    def first_look(self) -> int:
        """When the janitor is to look at it, in Unix seconds: at its end, or once it must be published if ever."""
        published = self.created_ms // 1000 + PUBLISHED_SECONDS
        return published if self.expires_at is None else min(self.expires_at, published)

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


def content_key(tenant: str, file_id: str) -> str:
    return f"{_file_prefix(tenant, file_id)}content"


def uploads_prefix(tenant: str) -> str:
    return f"uploads/{tenant}/"


def upload_prefix(tenant: str, upload_id: str) -> str:
    return f"{uploads_prefix(tenant)}{_checked(upload_id)}/"


def upload_part_key(tenant: str, upload_id: str, part_id: str) -> str:
    return f"{upload_prefix(tenant, upload_id)}parts/{_checked(part_id)}"


def arrived_prefix(tenant: str, upload_id: str) -> str:
    """Below it are the parts of an upload that have arrived whole."""
    return f"{upload_prefix(tenant, upload_id)}arrived/"


def input_key(tenant: str, batch_id: str) -> str:
    return f"{_batch_prefix(tenant, batch_id)}input"


def plan_key(tenant: str, batch_id: str, attempt: str) -> str:
    return f"{_batch_prefix(tenant, batch_id)}plans/{attempt}"


def parts_prefix(tenant: str, batch_id: str, shard: int) -> str:
    return f"{_batch_prefix(tenant, batch_id)}parts/{shard:06d}/"


def part_key(tenant: str, batch_id: str, shard: int, attempt: str, number: int) -> str:
    return f"{parts_prefix(tenant, batch_id, shard)}{attempt}-{number:06d}"


def results_prefix(tenant: str, batch_id: str, shard: int) -> str:
    return f"{_batch_prefix(tenant, batch_id)}results/{shard:06d}/"


def result_key(tenant: str, batch_id: str, shard: int, attempt: str) -> str:
    return f"{results_prefix(tenant, batch_id, shard)}{attempt}"


def active_prefix(tenant: str) -> str:
    return f"active/{tenant}/"


def active_key(tenant: str, batch_id: str) -> str:
    return f"{active_prefix(tenant)}{_checked(batch_id)}"


def attempt_of(result_key: str) -> str:
    """The attempt that wrote a result object."""
    return result_key.rsplit("/", 1)[1]


def attempt_name(number: int) -> str:
    """A name that no other attempt has.

    Temporal's number alone is not enough: a shard that is scheduled anew (its batch was paused, its workflow reset)
    counts from one again, perhaps while an attempt of before still runs somewhere.
    """
    return f"{number:06d}-{secrets.token_hex(4)}"


def _file_prefix(tenant: str, file_id: str) -> str:
    return f"files/{tenant}/{_checked(file_id)}/"


def _record_key(tenant: str, file_id: str) -> str:
    return f"{_file_prefix(tenant, file_id)}object.json"


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
        self.store.put(_record_key(tenant, record.id), record.model_dump_json().encode())

    def get_file(self, tenant: str, file_id: str) -> FileRecord:
        return FileRecord.model_validate_json(self.store.get(_record_key(tenant, file_id)))

    def delete_file(self, tenant: str, file_id: str) -> None:
        self.drop_file(tenant, self.get_file(tenant, file_id))

    def drop_file(self, tenant: str, record: FileRecord) -> None:
        """Delete a file, however much of it there is."""
        # A crash between the steps leaves bytes nobody can name, not a name without bytes; and no place in the list
        # without the record that it is found by.
        self.store.delete(_index_key(tenant, "files", record.id, record.created_ms))
        self.store.delete(_record_key(tenant, record.id))
        self.store.delete(content_key(tenant, record.id))

    def delete_expired_file(self, tenant: str, file_id: str, now: int) -> bool:
        """Delete a file that has expired by ``now``, or content without a record.

        An upload under the same idempotency key may put a new file in its place meanwhile. Its record is written
        before :meth:`is_whole` looks for the mark, as the mark is before the record is looked at here; so either that
        record is seen here and stays, or the upload sees that its file is being deleted, or was.

        Returns:
            Whether there was something to delete.
        """
        prefix = _file_prefix(tenant, file_id)
        record = self.find_file(tenant, file_id)
        if (record and not record.is_expired(now)) or not list(self.store.list(prefix)):
            return False
        mark = f"{prefix}deleting"
        self.store.put(mark, b"")
        record = self.find_file(tenant, file_id)
        if record and record.is_expired(now):
            self.drop_file(tenant, record)
            record = None
        elif not record:
            for key in self.store.list(_index_prefix(tenant, "files")):
                if key.endswith(f"-{file_id}"):  # the crash came behind it; when the file was made is not known
                    self.store.delete(key)
            self.store.delete(f"{prefix}content")
        self.store.delete(mark)
        return record is None

    def is_whole(self, tenant: str, file_id: str) -> bool:
        """Whether a file that was just saved is safe from the janitor; see :meth:`delete_expired_file`."""
        prefix = _file_prefix(tenant, file_id)
        # One after the other: a janitor that has taken its mark away has deleted the content before.
        return f"{prefix}deleting" not in self.store.list(prefix) and f"{prefix}content" in self.store.list(prefix)

    def find_file(self, tenant: str, file_id: str) -> FileRecord | None:
        try:
            return self.get_file(tenant, file_id)
        except ObjectNotFound:
            return None

    def list_files(self, tenant: str, *, after: FileRecord | None, ascending: bool = False) -> Iterator[FileRecord]:
        """Files created before ``after`` (behind it, where ``ascending``), newest first unless ``ascending``."""
        position = (after.id, after.created_ms) if after else None

        def read(place: tuple[str, int]) -> FileRecord | None:
            record = self.find_file(tenant, place[0])  # none where it was deleted since it was listed
            # Of another time, the entry is left over from an earlier file of this id, or an earlier try.
            return record if record and record.created_ms == place[1] else None

        places = self._list(tenant, "files", position, ascending)
        yield from filter(None, read_ahead(read, places, self.store.reads_at_once))

    def file_places(self, tenant: str) -> list[tuple[str, int]]:
        """Ids and milliseconds of all files, newest first, without a look at their records: some may have none."""
        return list(self._list(tenant, "files", None, ascending=False))

    # Batches

    # A batch's record is three objects, each written for one moment of its life and never with other content,
    # so that no late writer (a slow API process, a worker that was suspended) can take a batch back in time.

    def create_batch(self, spec: BatchSpec) -> None:
        """Make a batch known and listed. Doing it again changes nothing."""
        self.note_create(spec)
        self._save("created.json", BatchRecord(spec=spec, status=BatchStatus()))

    def note_create(self, spec: BatchSpec) -> None:
        """Let :meth:`find_create` find a batch that is about to be started. It is not listed before it has a record."""
        key = _index_key(spec.tenant, "batches", spec.batch_id, spec.created_ms)
        self.store.put(key, spec.digest.encode())

    def forget_create(self, spec: BatchSpec) -> None:
        """Take back the note of a batch that is not to be started after all."""
        self.store.delete(_index_key(spec.tenant, "batches", spec.batch_id, spec.created_ms))

    def find_create(self, tenant: str, digest: str, since_ms: int) -> tuple[str, int] | None:
        """Id and milliseconds of the newest batch of this digest since then, among the newest hundred batches."""
        for batch_id, created_ms in islice(self._list(tenant, "batches", None, ascending=False), 100):
            if created_ms < since_ms:
                break
            with contextlib.suppress(ObjectNotFound):
                if self.store.get(_index_key(tenant, "batches", batch_id, created_ms)) == digest.encode():
                    return batch_id, created_ms
        return None

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

    def find_batch(self, tenant: str, batch_id: str) -> BatchRecord | None:
        try:
            return self.get_batch(tenant, batch_id)
        except ObjectNotFound:
            return None

    def _save(self, name: str, record: BatchRecord) -> None:
        prefix = _batch_prefix(record.spec.tenant, record.spec.batch_id)
        self.store.put(prefix + name, record.model_dump_json().encode())

    def _load(self, tenant: str, batch_id: str, name: str) -> BatchRecord:
        return BatchRecord.model_validate_json(self.store.get(_batch_prefix(tenant, batch_id) + name))

    def list_batches(self, tenant: str, *, after: BatchRecord | None, ascending: bool = False) -> Iterator[BatchRecord]:
        """As :meth:`list_files`."""
        position = (after.spec.batch_id, after.spec.created_ms) if after else None

        places = self._list(tenant, "batches", position, ascending)
        records = read_ahead(lambda place: self.find_batch(tenant, place[0]), places, self.store.reads_at_once)
        yield from filter(None, records)

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
        self.store.delete_prefix(f"{prefix}plans/")
        self.store.delete_prefix(f"{prefix}parts/")
        self.store.delete_prefix(f"{prefix}results/")

    # What is to be looked at later

    def remind(self, kind: DueKind, tenant: str, object_id: str, at: int) -> None:
        """Have the janitor look at an object at a time, in Unix seconds. Write it before what it may have to delete."""
        self.store.put(Reminder(kind, tenant, object_id, at).key, b"")

    def forget(self, reminder: Reminder) -> None:
        self.store.delete(reminder.key)

    def due(self, now: int) -> Iterator[Reminder]:
        """Reminders up to ``now``, oldest first. Lists no further than it is read."""
        for key in self.store.list(PREFIX):
            reminder = Reminder.of_key(key)
            if reminder.at > now:
                return
            yield reminder

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
