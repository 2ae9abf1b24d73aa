"""Records of files and batches in the store, and reminders for the janitor."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from typing import Final

from pydantic import BaseModel, ConfigDict

from activities.records.cuts import Cut, load_cut
from activities.records.keys import (
    batch_prefix,
    content_key,
    cuts_prefix,
    feed_prefix,
    file_prefix,
    input_key,
    kept_prefix,
    orders_prefix,
    record_key,
    webhook_key,
)
from activities.records.object_index import PURPOSES, IndexEntry, drop_entries, file_index, index_entries, index_key
from activities.records.read_ahead import read_ahead
from activities.records.reminders import PREFIX, DueKind, Reminder
from activities.records.sending_order import ENTRY_BYTES, LinePlace, unpack_places
from activities.records.shard_keys import answers_prefixes
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from workflows.contract import MESSAGES_ENDPOINT
from workflows.types import BatchRecord, BatchSpec, BatchStatus, Shard

PUBLISHED_SECONDS: Final = 24 * 3600
"""After which content that has no record yet will get none."""
PLACE_SECONDS: Final = 24 * 3600
"""That the list entry of a deleted file in the list is remembered, for a client that deletes what it lists."""
DELETING_SECONDS: Final = 600
"""After which a deletion that has not come to its end was cut off."""

_BATCHES: Final = "batches"
_MESSAGE_BATCHES: Final = "message_batches"
"""Of the endpoint of Anthropic's API, whose list would else be looked for among all batches."""


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
    sha256: str = ""
    """Of the bytes, in hex, where they came in one request."""
    digest: str = ""
    """Of an upload, its bytes included: what its idempotency key stands for."""

    @property
    def index_entry(self) -> IndexEntry:
        return IndexEntry(self.id, self.created_ms)

    @property
    def first_look(self) -> int:
        """When the janitor is to look at it, in Unix seconds: at its end, or once it must be published if ever."""
        published = self.created_ms // 1000 + PUBLISHED_SECONDS
        return published if self.expires_at is None else min(self.expires_at, published)

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class Catalog:
    """Records of files and batches in a store. All calls block.

    Raises:
        ObjectNotFoundError: from the getters, for an id that is not there.
        StoreError: from every method, when the store cannot be used.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self._clock = clock

    # Files

    # An index entry without its record is passed over, so the record, which makes a thing be there, is written last.

    def save_file(self, tenant: str, record: FileRecord) -> None:
        """Publish a file whose content is in the store already."""
        self.store.put(index_key(tenant, file_index(record.purpose), record.index_entry), b"")
        self.store.put(record_key(tenant, record.id), record.model_dump_json().encode())

    def get_file(self, tenant: str, file_id: str) -> FileRecord:
        return FileRecord.model_validate_json(self.store.get(record_key(tenant, file_id)))

    def file_entry(self, tenant: str, file_id: str) -> IndexEntry:
        """Of a file that is there, or was within the last day."""
        with contextlib.suppress(ObjectNotFoundError):
            return self.get_file(tenant, file_id).index_entry
        return IndexEntry(file_id, self._deleted(tenant, file_id)[0])

    def delete_file(self, tenant: str, file_id: str) -> None:
        if not self.replace_file(tenant, self.get_file(tenant, file_id)):
            raise ObjectNotFoundError(file_id)

    def drop_file(self, tenant: str, record: FileRecord) -> None:
        """Delete a file that nobody has seen yet, however much of it there is."""
        # A crash between the steps leaves bytes nobody can name, not a name without bytes or an entry without a record.
        self.store.delete(index_key(tenant, file_index(record.purpose), record.index_entry))
        self.store.delete(record_key(tenant, record.id))
        self.store.delete(content_key(tenant, record.id))

    def replace_file(self, tenant: str, record: FileRecord) -> bool:
        """Delete a file unless another has taken its place; whether it was there.

        An upload under the same idempotency key may put a new file in its place meanwhile. Its record is written
        before :meth:`is_whole` looks for the mark, as the mark is before the record is looked at here; so either that
        record is seen here and stays, or the upload sees that its file is being deleted, or was.
        """
        now = int(self._clock())
        prefix = file_prefix(tenant, record.id)
        self.remind("file", tenant, record.id, now + PLACE_SECONDS)
        with self._deleting(prefix):
            if self.find_file(tenant, record.id) != record:
                return False
            self.store.put(f"{prefix}deleted", f"{record.created_ms} {now}".encode())
            self.drop_file(tenant, record)
        return True

    def delete_expired_file(self, tenant: str, file_id: str) -> bool:
        """Delete what has expired, has no record or was deleted a day ago; whether there was a file, or content."""
        record = self.find_file(tenant, file_id)
        if record:
            return record.is_expired(self._clock()) and self.replace_file(tenant, record)
        prefix = file_prefix(tenant, file_id)
        deleted_at = None
        with contextlib.suppress(ObjectNotFoundError):
            deleted_at = self._deleted(tenant, file_id)[1]
            if self._clock() < deleted_at + PLACE_SECONDS:
                return False
        has_content = f"{prefix}content" in self.store.list(prefix)
        with self._deleting(prefix) if has_content else contextlib.nullcontext():
            if self.find_file(tenant, file_id):
                return False
            if has_content:
                if deleted_at is None:  # its publication was cut off, and when it was made is not known
                    drop_entries(self.store, tenant, file_id)
                self.store.delete(f"{prefix}content")
            self.store.delete(f"{prefix}deleted")
        return has_content

    def _deleted(self, tenant: str, file_id: str) -> tuple[int, int]:
        """Milliseconds of a deleted file's creation, and when it was deleted in Unix seconds."""
        created_ms, deleted_at = self.store.get(f"{file_prefix(tenant, file_id)}deleted").split()
        return int(created_ms), int(deleted_at)

    @contextlib.contextmanager
    def _deleting(self, prefix: str) -> Generator[None]:
        mark = f"{prefix}deleting-{int(self._clock())}-{secrets.token_hex(4)}"
        self.store.put(mark, b"")
        yield
        self.store.delete(mark)

    def is_whole(self, tenant: str, file_id: str) -> bool:
        """Whether a file that was just saved is safe from those who delete; see :meth:`replace_file`."""
        prefix = file_prefix(tenant, file_id)
        names = [key.removeprefix(prefix) for key in self.store.list(prefix)]
        marked_at = [int(name.split("-")[1]) for name in names if name.startswith("deleting-")]
        if any(at > self._clock() - DELETING_SECONDS for at in marked_at):
            return False
        # Once more: who has taken its mark away has deleted the content before.
        return f"{prefix}content" in self.store.list(prefix)

    def find_file(self, tenant: str, file_id: str) -> FileRecord | None:
        try:
            return self.get_file(tenant, file_id)
        except ObjectNotFoundError:
            return None

    def list_files(
        self, tenant: str, *, after: IndexEntry | None, ascending: bool = False, purpose: str | None = None
    ) -> Iterator[FileRecord]:
        """Files created before ``after`` (behind it, where ``ascending``), newest first unless ``ascending``."""

        def read(entry: IndexEntry) -> FileRecord | None:
            record = self.find_file(tenant, entry.id)  # none where it was deleted since it was listed
            # Of another time, the entry is left over from an earlier file of this id, or an earlier try.
            return record if record and record.index_entry == entry else None

        listed = self.file_entries(tenant, after=after, ascending=ascending, purpose=purpose)
        yield from filter(None, read_ahead(read, listed, self.store.reads_at_once))

    def file_entries(
        self, tenant: str, *, after: IndexEntry | None = None, ascending: bool = False, purpose: str | None = None
    ) -> Iterator[IndexEntry]:
        """As :meth:`list_files`, without a look at their records: some may have none."""
        kinds = [file_index(known) for known in PURPOSES if purpose in (None, known)]
        return index_entries(self.store, tenant, kinds, after, ascending)

    # Batches

    # A batch's record is three objects, each written for one moment of its life and never with other content,
    # so that no late writer (a slow API process, a worker that was suspended) can take a batch back in time.

    def create_batch(self, spec: BatchSpec) -> None:
        """Make a batch known and listed. Doing it again changes nothing."""
        for key in _batch_index(spec):
            self.store.put(key, b"")
        self._save("created.json", BatchRecord(spec=spec, status=BatchStatus()))

    def save_running(self, record: BatchRecord) -> None:
        self._save("running.json", record)

    def save_final(self, record: BatchRecord) -> None:
        self._save("record.json", record)

    def get_final(self, tenant: str, batch_id: str) -> BatchRecord | None:
        """The record in its terminal state, if the batch has come to it."""
        try:
            return self._load(tenant, batch_id, "record.json")
        except ObjectNotFoundError:
            return None

    def get_batch(self, tenant: str, batch_id: str) -> BatchRecord:
        """The newest of the batch's records."""
        for name in ("record.json", "running.json"):
            with contextlib.suppress(ObjectNotFoundError):
                return self._load(tenant, batch_id, name)
        return self._load(tenant, batch_id, "created.json")

    def find_batch(self, tenant: str, batch_id: str) -> BatchRecord | None:
        try:
            return self.get_batch(tenant, batch_id)
        except ObjectNotFoundError:
            return None

    def _save(self, name: str, record: BatchRecord) -> None:
        prefix = batch_prefix(record.spec.tenant, record.spec.batch_id)
        self.store.put(prefix + name, record.model_dump_json().encode())

    def _load(self, tenant: str, batch_id: str, name: str) -> BatchRecord:
        return BatchRecord.model_validate_json(self.store.get(batch_prefix(tenant, batch_id) + name))

    def batch_entry(self, tenant: str, batch_id: str) -> IndexEntry:
        return IndexEntry(batch_id, self.get_batch(tenant, batch_id).spec.created_ms)

    def list_batches(
        self, tenant: str, *, after: IndexEntry | None, ascending: bool = False, messages_only: bool = False
    ) -> Iterator[BatchRecord]:
        """As :meth:`list_files`."""
        listed = index_entries(self.store, tenant, [_MESSAGE_BATCHES if messages_only else _BATCHES], after, ascending)
        records = read_ahead(lambda entry: self.find_batch(tenant, entry.id), listed, self.store.reads_at_once)
        yield from (record for record in records if record and record.deleted_at is None)

    def delete_batch(self, record: BatchRecord) -> None:
        """Delete a batch that has ended, with its files. Doing it again changes nothing.

        A record without what its client wrote stays, so that neither a late writer nor the janitor nor Temporal, which
        remembers the run for a while, brings the batch back.
        """
        spec = record.spec
        file_ids = [record.status.output_file_id, record.status.error_file_id]
        for file_id in filter(None, [*file_ids, spec.input_file_id if spec.inline_requests else None]):
            with contextlib.suppress(ObjectNotFoundError):
                self.delete_file(spec.tenant, file_id)
        self.delete_leftovers(spec.tenant, spec.batch_id)
        self.delete_feed(spec.tenant, spec.batch_id)
        self.store.delete(webhook_key(spec.tenant, spec.batch_id))
        bare = BatchRecord(
            spec=spec.model_copy(update={"metadata": None}),
            status=record.status.model_copy(update={"errors": [], "error_summary": []}),
            deleted_at=int(self._clock()),
        )
        self.save_final(bare)
        self.store.delete(*_batch_index(spec))

    def save_cut(self, tenant: str, batch_id: str, cut: Cut, order: bytes = b"") -> None:
        if order:
            self.store.put(orders_prefix(tenant, batch_id) + cut.digest, order)
        self.store.put(cuts_prefix(tenant, batch_id) + cut.digest, cut.dump())

    def get_cut(self, tenant: str, batch_id: str, digest: str) -> Cut:
        return load_cut(self.store.get(cuts_prefix(tenant, batch_id) + digest))

    def get_places(self, tenant: str, batch_id: str, digest: str, shard: Shard) -> list[LinePlace]:
        """Where the requests of a shard are in the input, as they are sent, in a cut that has an order of its own."""
        key = orders_prefix(tenant, batch_id) + digest
        return unpack_places(b"".join(self.store.stream(key, shard.offset, shard.requests * ENTRY_BYTES)))

    def cuts(self, tenant: str, batch_id: str) -> list[str]:
        """Digests of all cuts of a batch's input. A cut is here before its first shard is run."""
        prefix = cuts_prefix(tenant, batch_id)
        return [key.removeprefix(prefix) for key in self.store.list(prefix)]

    def delete_leftovers(self, tenant: str, batch_id: str) -> None:
        """Delete what only a running batch needs. The record stays."""
        # The input first: an attempt that still writes the files needs it to take a shard for unanswered, so none
        # can mistake what is deleted next for what was never answered.
        self.store.delete(input_key(tenant, batch_id))
        self.store.delete_prefix(cuts_prefix(tenant, batch_id))
        of_run = (*answers_prefixes(tenant, batch_id), orders_prefix(tenant, batch_id), kept_prefix(tenant, batch_id))
        for prefix in of_run:
            self.store.delete_prefix(prefix)

    def delete_feed(self, tenant: str, batch_id: str) -> None:
        """Delete what says which lines were shown in which order. It is needed as long as the result files are."""
        self.store.delete_prefix(feed_prefix(tenant, batch_id))

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


def _batch_index(spec: BatchSpec) -> list[str]:
    """The keys under which a batch is listed."""
    kinds = [_BATCHES, *([_MESSAGE_BATCHES] if spec.endpoint == MESSAGES_ENDPOINT else [])]
    return [index_key(spec.tenant, kind, IndexEntry(spec.batch_id, spec.created_ms)) for kind in kinds]


def has_result_files(record: BatchRecord) -> bool:
    """Whether a batch that has ended has result files."""
    return bool(record.status.output_file_id or record.status.error_file_id)
