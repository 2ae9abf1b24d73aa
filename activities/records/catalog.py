"""Records of files and batches in the store, and reminders for the janitor."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from typing import Final

from pydantic import BaseModel, ConfigDict

from activities.records import keys
from activities.records.cuts import Cut
from activities.records.object_index import PURPOSES, IndexEntry, drop_entries, file_index, index_entries, index_key
from activities.records.read_ahead import read_ahead
from activities.records.reminders import PREFIX, DueKind, Reminder
from activities.records.sending_order import ENTRY_BYTES, LinePlace, unpack_places
from activities.records.shard_keys import answers_prefixes
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from workflows.contract import MESSAGES_ENDPOINT
from workflows.ids import BatchRef
from workflows.types import BatchRecord, BatchSpec, BatchStatus, Shard

PUBLISHED_SECONDS: Final = 24 * 3600
"""Seconds after which content that has no record yet will never get one."""
PLACE_SECONDS: Final = 24 * 3600
"""Seconds for which the list position of a deleted file is kept, for clients that delete files while listing them."""
DELETING_SECONDS: Final = 600
"""Seconds after which an unfinished deletion counts as interrupted."""

_BATCHES: Final = "batches"
_MESSAGE_BATCHES: Final = "message_batches"
"""Index of the batches of Anthropic's API, so that listing them does not read all batches."""


class FileRecord(BaseModel):
    """A stored file, without its bytes."""

    model_config = ConfigDict(frozen=True)

    id: str
    bytes: int
    created_ms: int
    filename: str
    purpose: str
    expires_at: int | None = None
    """Unix time in seconds."""
    lines: int | None = None
    """Number of lines of an uploaded file, including blank ones."""
    sha256: str = ""
    """SHA-256 of the content in hex, if it was uploaded in one request."""
    digest: str = ""
    """Digest of an upload with an idempotency key, including its content."""

    @property
    def index_entry(self) -> IndexEntry:
        return IndexEntry(self.id, self.created_ms)

    @property
    def first_look(self) -> int:
        """Unix time in seconds at which the janitor first inspects it: when it expires or must have been published."""
        published = self.created_ms // 1000 + PUBLISHED_SECONDS
        return published if self.expires_at is None else min(self.expires_at, published)

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class Catalog:
    """Records of files and batches. The getters raise ``ObjectNotFoundError`` if there is no object with this id."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self._clock = clock

    # Files

    # Index entries without a record are skipped, so the record, which makes an object exist, is written last.

    def save_file(self, tenant: str, record: FileRecord) -> None:
        """Publish a file whose content is already in the store."""
        self.store.put(index_key(tenant, file_index(record.purpose), record.index_entry), b"")
        self.store.put(keys.record_key(tenant, record.id), record.model_dump_json().encode())

    def get_file(self, tenant: str, file_id: str) -> FileRecord:
        return FileRecord.model_validate_json(self.store.get(keys.record_key(tenant, file_id)))

    def file_entry(self, tenant: str, file_id: str) -> IndexEntry:
        """Return the index entry of a file that exists or was deleted within the last day."""
        with contextlib.suppress(ObjectNotFoundError):
            return self.get_file(tenant, file_id).index_entry
        return IndexEntry(file_id, self._deleted(tenant, file_id)[0])

    def delete_file(self, tenant: str, file_id: str) -> None:
        if not self.replace_file(tenant, self.get_file(tenant, file_id)):
            raise ObjectNotFoundError(file_id)

    def drop_file(self, tenant: str, record: FileRecord) -> None:
        """Delete a file that no client has seen yet, even if parts of it are missing."""
        # A crash between the steps leaves unreachable content, but no entry without a record or record without content.
        self.store.delete(index_key(tenant, file_index(record.purpose), record.index_entry))
        self.store.delete(keys.record_key(tenant, record.id))
        self.store.delete(keys.content_key(tenant, record.id))

    def replace_file(self, tenant: str, record: FileRecord) -> bool:
        """Delete a file unless another one has replaced it. Returns whether it was deleted.

        An upload with the same idempotency key may write a new file under this id meanwhile. It writes its record
        before :meth:`is_whole` looks for the mark, and this method writes the mark before it reads the record. So
        either this method sees the new record and keeps it, or the upload sees that its file is or was being deleted.
        """
        now = int(self._clock())
        prefix = keys.file_prefix(tenant, record.id)
        self.remind("file", tenant, record.id, now + PLACE_SECONDS)
        with self._deleting(prefix):
            if self.find_file(tenant, record.id) != record:
                return False
            self.store.put(f"{prefix}deleted", f"{record.created_ms} {now}".encode())
            self.drop_file(tenant, record)
        return True

    def delete_expired_file(self, tenant: str, file_id: str) -> bool:
        """Delete a file that has expired, has no record or was deleted a day ago. Returns whether it had content."""
        record = self.find_file(tenant, file_id)
        if record:
            return record.is_expired(self._clock()) and self.replace_file(tenant, record)
        prefix = keys.file_prefix(tenant, file_id)
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
                if deleted_at is None:  # its publication was interrupted, so its creation time is unknown
                    drop_entries(self.store, tenant, file_id)
                self.store.delete(f"{prefix}content")
            self.store.delete(f"{prefix}deleted")
        return has_content

    def _deleted(self, tenant: str, file_id: str) -> tuple[int, int]:
        """Return a deleted file's time of creation, in Unix milliseconds, and of deletion, in Unix seconds."""
        created_ms, deleted_at = self.store.get(f"{keys.file_prefix(tenant, file_id)}deleted").split()
        return int(created_ms), int(deleted_at)

    @contextlib.contextmanager
    def _deleting(self, prefix: str) -> Generator[None]:
        mark = f"{prefix}deleting-{int(self._clock())}-{secrets.token_hex(4)}"
        self.store.put(mark, b"")
        yield
        self.store.delete(mark)

    def is_whole(self, tenant: str, file_id: str) -> bool:
        """Return whether a file that was just saved is safe from concurrent deletions; see :meth:`replace_file`."""
        prefix = keys.file_prefix(tenant, file_id)
        names = [key.removeprefix(prefix) for key in self.store.list(prefix)]
        marked_at = [int(name.split("-")[1]) for name in names if name.startswith("deleting-")]
        if any(at > self._clock() - DELETING_SECONDS for at in marked_at):
            return False
        # List again: a deletion removes its mark only after the content.
        return f"{prefix}content" in self.store.list(prefix)

    def find_file(self, tenant: str, file_id: str) -> FileRecord | None:
        try:
            return self.get_file(tenant, file_id)
        except ObjectNotFoundError:
            return None

    def list_files(
        self, tenant: str, *, after: IndexEntry | None, ascending: bool = False, purpose: str | None = None
    ) -> Iterator[FileRecord]:
        """Yield files created before ``after``, newest first; if ``ascending``, those after it, oldest first."""

        def read(entry: IndexEntry) -> FileRecord | None:
            record = self.find_file(tenant, entry.id)  # None if it was deleted since it was listed
            # An entry with another time is left from an earlier file with this id, or an earlier attempt.
            return record if record and record.index_entry == entry else None

        listed = self.file_entries(tenant, after=after, ascending=ascending, purpose=purpose)
        yield from filter(None, read_ahead(read, listed, self.store.reads_at_once))

    def file_entries(
        self, tenant: str, *, after: IndexEntry | None = None, ascending: bool = False, purpose: str | None = None
    ) -> Iterator[IndexEntry]:
        """Yield the entries of :meth:`list_files` without reading records, which some may lack."""
        kinds = [file_index(known) for known in PURPOSES if purpose in (None, known)]
        return index_entries(self.store, tenant, kinds, after, ascending)

    # Batches

    # A batch's record consists of three objects, each for one stage of its life and never written with other content,
    # so that no late writer (a slow API process, a suspended worker) can return a batch to an earlier stage.

    def create_batch(self, spec: BatchSpec) -> None:
        """Write the first record of a batch and list it. Idempotent."""
        for key in _batch_index(spec):
            self.store.put(key, b"")
        self._save("created.json", BatchRecord(spec=spec, status=BatchStatus()))

    def save_running(self, record: BatchRecord) -> None:
        self._save("running.json", record)

    def save_final(self, record: BatchRecord) -> None:
        self._save("record.json", record)

    def get_final(self, ref: BatchRef) -> BatchRecord | None:
        """Return the final record, or ``None`` if the batch has not ended."""
        try:
            return self._load(ref, "record.json")
        except ObjectNotFoundError:
            return None

    def get_batch(self, ref: BatchRef) -> BatchRecord:
        """Return the newest of the batch's records."""
        for name in ("record.json", "running.json"):
            with contextlib.suppress(ObjectNotFoundError):
                return self._load(ref, name)
        return self._load(ref, "created.json")

    def find_batch(self, ref: BatchRef) -> BatchRecord | None:
        try:
            return self.get_batch(ref)
        except ObjectNotFoundError:
            return None

    def _save(self, name: str, record: BatchRecord) -> None:
        self.store.put(keys.batch_prefix(record.spec.ref) + name, record.model_dump_json().encode())

    def _load(self, ref: BatchRef, name: str) -> BatchRecord:
        return BatchRecord.model_validate_json(self.store.get(keys.batch_prefix(ref) + name))

    def batch_entry(self, ref: BatchRef) -> IndexEntry:
        return IndexEntry(ref.batch_id, self.get_batch(ref).spec.created_ms)

    def list_batches(
        self, tenant: str, *, after: IndexEntry | None, ascending: bool = False, messages_only: bool = False
    ) -> Iterator[BatchRecord]:
        """Yield batches like :meth:`list_files`. Deleted batches are skipped."""
        listed = index_entries(self.store, tenant, [_MESSAGE_BATCHES if messages_only else _BATCHES], after, ascending)
        refs = (BatchRef(tenant, entry.id) for entry in listed)
        records = read_ahead(self.find_batch, refs, self.store.reads_at_once)
        yield from (record for record in records if record and record.deleted_at is None)

    def delete_batch(self, record: BatchRecord) -> None:
        """Delete a batch that has ended, and its files. Idempotent.

        A record without the client's data stays, so that neither a late writer nor the janitor nor Temporal, which
        remembers the run for a while, can recreate the batch.
        """
        spec = record.spec
        file_ids = [record.status.output_file_id, record.status.error_file_id]
        for file_id in filter(None, [*file_ids, spec.input_file_id if spec.inline_requests else None]):
            with contextlib.suppress(ObjectNotFoundError):
                self.delete_file(spec.tenant, file_id)
        self.delete_leftovers(spec.ref)
        self.delete_feed(spec.ref)
        self.store.delete(keys.webhook_key(spec.ref))
        bare = BatchRecord(
            spec=spec.model_copy(update={"metadata": None}),
            status=record.status.model_copy(update={"errors": [], "error_summary": []}),
            deleted_at=int(self._clock()),
        )
        self.save_final(bare)
        self.store.delete(*_batch_index(spec))

    def save_cut(self, ref: BatchRef, cut: Cut, order: bytes = b"") -> None:
        if order:
            self.store.put(keys.orders_prefix(ref) + cut.digest, order)
        self.store.put(keys.cuts_prefix(ref) + cut.digest, cut.dump())

    def get_cut(self, ref: BatchRef, digest: str) -> Cut:
        return Cut.load(self.store.get(keys.cuts_prefix(ref) + digest))

    def get_places(self, ref: BatchRef, digest: str, shard: Shard) -> list[LinePlace]:
        """Return the places of a shard's requests in the input, in sending order. The cut must have one."""
        key = keys.orders_prefix(ref) + digest
        return unpack_places(b"".join(self.store.stream(key, shard.offset, shard.requests * ENTRY_BYTES)))

    def cuts(self, ref: BatchRef) -> list[str]:
        """Return the digests of all cuts of a batch's input. A cut is saved before its first shard runs."""
        prefix = keys.cuts_prefix(ref)
        return [key.removeprefix(prefix) for key in self.store.list(prefix)]

    def delete_leftovers(self, ref: BatchRef) -> None:
        """Delete the objects that only a running batch needs. The record stays."""
        # The input goes first: an attempt that is still writing result files needs it to treat a request as unanswered,
        # so it cannot mistake answers that are deleted next for missing ones.
        self.store.delete(keys.input_key(ref))
        self.store.delete_prefix(keys.cuts_prefix(ref))
        of_run = (*answers_prefixes(ref), keys.orders_prefix(ref), keys.kept_prefix(ref))
        for prefix in of_run:
            self.store.delete_prefix(prefix)

    def delete_feed(self, ref: BatchRef) -> None:
        """Delete the order in which lines were shown. It is needed as long as the result files are."""
        self.store.delete_prefix(keys.feed_prefix(ref))

    # Reminders

    def remind(self, kind: DueKind, tenant: str, object_id: str, at: int) -> None:
        """Remind the janitor of an object at a Unix time in seconds. Call this before writing what it may delete."""
        self.store.put(Reminder(kind, tenant, object_id, at).key, b"")

    def forget(self, reminder: Reminder) -> None:
        self.store.delete(reminder.key)

    def due(self, now: int) -> Iterator[Reminder]:
        """Yield the reminders up to ``now``, oldest first. Keys are listed lazily."""
        for key in self.store.list(PREFIX):
            reminder = Reminder.of_key(key)
            if reminder.at > now:
                return
            yield reminder


def _batch_index(spec: BatchSpec) -> list[str]:
    """Return the index keys of a batch."""
    kinds = [_BATCHES, *([_MESSAGE_BATCHES] if spec.endpoint == MESSAGES_ENDPOINT else [])]
    return [index_key(spec.tenant, kind, IndexEntry(spec.batch_id, spec.created_ms)) for kind in kinds]


def has_result_files(record: BatchRecord) -> bool:
    """Return whether a batch that has ended has result files."""
    return bool(record.status.output_file_id or record.status.error_file_id)
