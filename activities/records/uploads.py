"""Records of uploads: files that arrive in parts (keys: :mod:`activities.records.keys`).

Several API processes may serve one upload concurrently. Its status follows from its objects in the store:

``ended.json``
    is created once, and the request that creates it decides how the upload ends: it holds the file's record, or
    ``null`` if the upload was cancelled. The file is published from it. If the process is killed before that, a
    repeated request publishes the file.
otherwise
    the upload is pending for an hour, and then expired.

A part counts only once its key below ``arrived/`` exists, even if its content is already in the store. The name of that
key holds everything that completing the upload needs to know, so that one listing is enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter

from activities.records.catalog import Catalog, FileRecord
from activities.records.keys import arrived_prefix, content_key, upload_part_key, upload_prefix, uploads_prefix
from activities.store.object_store import ObjectNotFoundError, ObjectStore

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]

UPLOAD_SECONDS: Final = 3600
"""Seconds until a pending upload expires."""
GRACE_SECONDS: Final = 3600
"""Seconds for which parts are kept after an upload expires, for a completion that began before."""


_END: Final = TypeAdapter[FileRecord | None](FileRecord | None)


class UploadRecord(BaseModel):
    """The parameters with which a client created an upload."""

    model_config = ConfigDict(frozen=True)

    id: str
    bytes: int
    created_ms: int
    filename: str
    mime_type: str
    purpose: str
    lifetime: int | None
    """Seconds until the file expires; ``None`` if it does not."""

    @property
    def created_at(self) -> int:
        """Unix time in seconds, like all times here."""
        return self.created_ms // 1000

    @property
    def expires_at(self) -> int:
        return self.created_at + UPLOAD_SECONDS

    @property
    def kept_until(self) -> int:
        return self.expires_at + GRACE_SECONDS


class ArrivedPart(NamedTuple):
    """A part that has arrived."""

    id: str
    bytes: int
    newlines: int
    is_open: bool
    """Whether bytes follow its last newline."""


class HeldBytes(NamedTuple):
    """The bytes of its tenant's storage limit that an upload uses."""

    announced: int
    """Announced size of its file, while the upload is pending."""
    arrived: int
    """Bytes in parts. A part that was sent twice counts twice."""


@dataclass(frozen=True)
class UploadState:
    """The state of an upload at one moment."""

    record: UploadRecord
    status: UploadStatus
    file: FileRecord | None = None
    """Record of the file, if the upload is completed."""


class UploadRecords:
    """Uploads in a store. Calls raise ``ObjectNotFoundError`` if there is no upload with this id."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._clock = clock
        self._pending: dict[str, dict[str, UploadRecord]] = {}  # by tenant; a cache of records, which never change

    def create(self, tenant: str, record: UploadRecord) -> UploadState:
        self._catalog.remind("upload", tenant, record.id, record.kept_until)
        self._store.put(f"{upload_prefix(tenant, record.id)}created.json", record.model_dump_json().encode())
        return UploadState(record, "pending")

    def get(self, tenant: str, upload_id: str) -> UploadState:
        record = self._created(tenant, upload_id)
        with contextlib.suppress(ObjectNotFoundError):
            return _ended(record, self._store.get(f"{upload_prefix(tenant, upload_id)}ended.json"))
        return UploadState(record, "pending" if self._clock() < record.expires_at else "expired")

    def add_part(self, tenant: str, upload_id: str, part: ArrivedPart) -> None:
        """Record the arrival of a part whose content is already in the store."""
        name = f"{part.id}-{part.bytes}-{part.newlines}-{part.is_open:d}"
        self._store.put(f"{arrived_prefix(tenant, upload_id)}{name}", b"")

    def parts(self, tenant: str, upload_id: str) -> dict[str, ArrivedPart]:
        """Return the parts that have arrived, by id."""
        parts = map(_arrived, self._store.list(arrived_prefix(tenant, upload_id)))
        return {part.id: part for part in parts}

    def held(self, tenant: str) -> dict[str, HeldBytes]:
        """Return the bytes that each upload of a tenant uses. Parts count until they are deleted."""
        arrived: Counter[str] = Counter()
        pending: dict[str, UploadRecord | None] = {}
        for key in self._store.list(uploads_prefix(tenant)):
            upload_id, kind = key.split("/")[2:4]
            if kind == "arrived":
                arrived[upload_id] += _arrived(key).bytes
            elif kind == "created.json":
                pending[upload_id] = None
            elif kind == "ended.json":
                pending.pop(upload_id, None)
        before = self._pending.get(tenant, {})
        records = {upload_id: before.get(upload_id) or self._find_created(tenant, upload_id) for upload_id in pending}
        self._pending[tenant] = {upload_id: record for upload_id, record in records.items() if record}
        now = self._clock()
        announced = {one.id: one.bytes for one in self._pending[tenant].values() if now < one.expires_at}
        return {
            upload_id: HeldBytes(announced.get(upload_id, 0), arrived[upload_id])
            for upload_id in {*announced, *arrived}
        }

    def _created(self, tenant: str, upload_id: str) -> UploadRecord:
        return UploadRecord.model_validate_json(self._store.get(f"{upload_prefix(tenant, upload_id)}created.json"))

    def _find_created(self, tenant: str, upload_id: str) -> UploadRecord | None:
        with contextlib.suppress(ObjectNotFoundError):
            return self._created(tenant, upload_id)
        return None

    def md5(self, tenant: str, upload_id: str, parts: Iterable[ArrivedPart]) -> str:
        """Return the MD5 digest, in hex, of the file that the parts make up. Reads all parts."""
        digest = hashlib.md5(usedforsecurity=False)
        for part in parts:
            for chunk in self._store.stream(upload_part_key(tenant, upload_id, part.id)):
                digest.update(chunk)
        return digest.hexdigest()

    def complete(self, tenant: str, upload_id: str, file: FileRecord, parts: Sequence[ArrivedPart]) -> UploadState:
        """Make a file of the parts, unless the upload has ended in the meantime. Returns the state of the upload.

        If it is completed, the file exists only after :meth:`publish` has been called.

        Raises:
            ObjectNotFoundError: a part no longer exists, for example because the upload has ended.
        """
        self._catalog.remind("file", tenant, file.id, file.first_look)
        sources = [upload_part_key(tenant, upload_id, part.id) for part in parts if part.bytes]
        self._store.compose(sources, content_key(tenant, file.id))
        # If this request is too late, it leaves the content to the janitor: another request may be about to publish it
        # as the same file. An upload that has just expired is still completed, because its client asked in time.
        return self._end(tenant, upload_id, file)

    def _end(self, tenant: str, upload_id: str, file: FileRecord | None) -> UploadState:
        ended_key = f"{upload_prefix(tenant, upload_id)}ended.json"
        return _ended(self._created(tenant, upload_id), self._store.put_new(ended_key, _END.dump_json(file)))

    def publish(self, tenant: str, upload: UploadState) -> UploadState:
        """Finish a completion, whichever of its steps are already done. The client may have deleted the file since."""
        assert upload.file, "only a completed upload is published"
        try:
            # Of two concurrent completions, the first publishes the file, and both return the same record.
            upload = replace(upload, file=self._catalog.get_file(tenant, upload.file.id))
        except ObjectNotFoundError:
            if self._catalog.is_whole(tenant, upload.file.id):
                self._catalog.save_file(tenant, upload.file)
        self._delete_parts(tenant, upload.record.id)
        return upload

    def cancel(self, tenant: str, upload_id: str) -> UploadState:
        """Cancel an upload if it is pending. Returns its state."""
        upload = self.get(tenant, upload_id)
        if upload.status == "pending":
            upload = self._end(tenant, upload_id, None)
        if upload.status != "completed":
            self._delete_parts(tenant, upload_id)
        return upload

    def delete_upload_leftovers(self, tenant: str, upload_id: str) -> None:
        """Delete the parts of an upload that has ended, and after :attr:`UploadRecord.kept_until` also its record."""
        with contextlib.suppress(ObjectNotFoundError):
            upload = self.get(tenant, upload_id)
            if self._clock() < upload.record.kept_until:
                if upload.status in ("completed", "cancelled"):
                    self._delete_parts(tenant, upload_id)
                return
        prefix = upload_prefix(tenant, upload_id)
        self._store.delete(f"{prefix}created.json")  # first: without this record, nothing else below is read
        self._store.delete_prefix(prefix)

    def _delete_parts(self, tenant: str, upload_id: str) -> None:
        self._store.delete_prefix(arrived_prefix(tenant, upload_id))  # first: a part named there must exist
        self._store.delete_prefix(f"{upload_prefix(tenant, upload_id)}parts/")


def _ended(record: UploadRecord, end: bytes) -> UploadState:
    file = _END.validate_json(end)
    return UploadState(record, "completed" if file else "cancelled", file)


def _arrived(key: str) -> ArrivedPart:
    part_id, size, newlines, is_open = key.rpartition("/")[2].split("-")
    return ArrivedPart(part_id, int(size), int(newlines), is_open == "1")
