"""Records of uploads: files that arrive in parts (keys: :mod:`activities.catalog`).

The store has no compare-and-swap, and several API processes may serve one upload at a time, so nothing is read,
changed and written back. What has become of an upload follows from which of its objects are there:

``completed.json``
    holds the file's record and wins over all else. Its one write is the moment of completion; the file is published
    from it, and a repeated request publishes it if the first was killed in between.
``cancelled``
    wins over the clock. Who completes looks for it last thing before the write above, and who cancels looks for
    that write after its own; only a cancel within the milliseconds in which that write is made is overtaken by it.
neither
    the upload is pending for an hour, then expired.

Parts may be in the store without being there: each is there once its key in ``arrived/`` is, which says in its name
what completing needs to know, so that one listing tells it of all.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from activities.catalog import (
    Catalog,
    FileRecord,
    arrived_prefix,
    content_key,
    upload_part_key,
    upload_prefix,
    uploads_prefix,
)
from activities.storage import ObjectNotFound, ObjectStore

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]

UPLOAD_SECONDS: Final = 3600
"""That an upload lives."""
GRACE_SECONDS: Final = 3600
"""That parts stay behind an upload's end, for a completion that began before it."""


class UploadRecord(BaseModel):
    """What a client asked for."""

    model_config = ConfigDict(frozen=True)

    id: str
    bytes: int
    created_ms: int
    filename: str
    mime_type: str
    purpose: str
    lifetime: int | None
    """Seconds that the file will live."""

    @property
    def created_at(self) -> int:
        """Unix seconds, as all times here."""
        return self.created_ms // 1000

    @property
    def expires_at(self) -> int:
        return self.created_at + UPLOAD_SECONDS

    @property
    def kept_until(self) -> int:
        return self.expires_at + GRACE_SECONDS


class ArrivedPart(NamedTuple):
    """A part that is there."""

    id: str
    bytes: int
    newlines: int
    is_open: bool
    """Whether bytes follow its last newline."""


@dataclass(frozen=True)
class UploadState:
    """An upload as it was at one moment."""

    record: UploadRecord
    status: UploadStatus
    file: FileRecord | None = None
    """Once completed."""


class UploadRecords:
    """Uploads in a store. All calls block.

    Raises:
        ObjectNotFound: for an id that is not there.
        StoreError: when the store cannot be used.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._clock = clock

    def create(self, tenant: str, record: UploadRecord) -> UploadState:
        self._catalog.remind("upload", tenant, record.id, record.kept_until)
        self._store.put(f"{upload_prefix(tenant, record.id)}created.json", record.model_dump_json().encode())
        return UploadState(record, "pending")

    def get(self, tenant: str, upload_id: str) -> UploadState:
        prefix = upload_prefix(tenant, upload_id)
        record = UploadRecord.model_validate_json(self._store.get(f"{prefix}created.json"))
        if file := self._completed(tenant, upload_id):
            return UploadState(record, "completed", file)
        if self._has(f"{prefix}cancelled"):
            return UploadState(record, "cancelled")
        return UploadState(record, "pending" if self._clock() < record.expires_at else "expired")

    def _completed(self, tenant: str, upload_id: str) -> FileRecord | None:
        try:
            return FileRecord.model_validate_json(self._store.get(f"{upload_prefix(tenant, upload_id)}completed.json"))
        except ObjectNotFound:
            return None

    def _has(self, key: str) -> bool:
        try:
            self._store.get(key)
        except ObjectNotFound:
            return False
        return True

    def add_part(self, tenant: str, upload_id: str, part: ArrivedPart) -> None:
        """Let a part be there whose content is in the store already."""
        name = f"{part.id}-{part.bytes}-{part.newlines}-{part.is_open:d}"
        self._store.put(f"{arrived_prefix(tenant, upload_id)}{name}", b"")

    def parts(self, tenant: str, upload_id: str) -> dict[str, ArrivedPart]:
        """The parts that are there, by id."""
        parts = map(_arrived, self._store.list(arrived_prefix(tenant, upload_id)))
        return {part.id: part for part in parts}

    def arrived_bytes(self, tenant: str) -> int:
        """Bytes in the parts of all uploads of a tenant. They are there until the upload is completed or deleted."""
        keys = self._store.list(uploads_prefix(tenant))
        return sum(_arrived(key).bytes for key in keys if key.split("/")[3] == "arrived")

    def md5(self, tenant: str, upload_id: str, parts: Iterable[ArrivedPart]) -> str:
        """In hex, of the file that the parts are. Reads them all."""
        digest = hashlib.md5(usedforsecurity=False)
        for part in parts:
            for chunk in self._store.stream(upload_part_key(tenant, upload_id, part.id)):
                digest.update(chunk)
        return digest.hexdigest()

    def complete(self, tenant: str, upload_id: str, file: FileRecord, parts: Sequence[ArrivedPart]) -> UploadState:
        """Make a file of parts, unless the upload has ended meanwhile; what became of it is in the answer.

        A file that came of it is there once :meth:`publish` has been called.

        Raises:
            ObjectNotFound: as it happens where the parts go because the upload has ended.
        """
        self._catalog.remind("file", tenant, file.id, file.first_look)
        sources = [upload_part_key(tenant, upload_id, part.id) for part in parts if part.bytes]
        self._store.compose(sources, content_key(tenant, file.id))
        upload = self.get(tenant, upload_id)
        # An upload that expired meanwhile is completed nonetheless: its client asked in time.
        if upload.status in ("completed", "cancelled"):
            # The content stays for the janitor: another request may be about to publish it as the same file.
            return upload
        self._store.put(f"{upload_prefix(tenant, upload_id)}completed.json", file.model_dump_json().encode())
        return UploadState(upload.record, "completed", file)

    def publish(self, tenant: str, upload: UploadState) -> UploadState:
        """Bring a completion to its end, however far it has come. The client may have deleted the file since."""
        assert upload.file, "only a completed upload is published"
        try:
            # Of two requests that complete at once the first publishes, and both answer the same.
            upload = replace(upload, file=self._catalog.get_file(tenant, upload.file.id))
        except ObjectNotFound:
            if self._catalog.is_whole(tenant, upload.file.id):
                self._catalog.save_file(tenant, upload.file)
        self._delete_parts(tenant, upload.record.id)
        return upload

    def cancel(self, tenant: str, upload_id: str) -> UploadState:
        """Cancel an upload that is pending; what became of it is in the answer."""
        upload = self.get(tenant, upload_id)
        if upload.status == "pending":
            self._store.put(f"{upload_prefix(tenant, upload_id)}cancelled", b"")
            upload = self.get(tenant, upload_id)
        if upload.status != "completed":
            self._delete_parts(tenant, upload_id)
        return upload

    def delete_upload_leftovers(self, tenant: str, upload_id: str) -> None:
        """Delete the parts of an upload that is over, and its record too once nobody may ask for it any more."""
        with contextlib.suppress(ObjectNotFound):
            upload = self.get(tenant, upload_id)
            if self._clock() < upload.record.kept_until:
                if upload.status in ("completed", "cancelled"):
                    self._delete_parts(tenant, upload_id)
                return
        prefix = upload_prefix(tenant, upload_id)
        self._store.delete(f"{prefix}created.json")  # first: without it, nothing below is looked at
        self._store.delete_prefix(prefix)

    def _delete_parts(self, tenant: str, upload_id: str) -> None:
        self._store.delete_prefix(arrived_prefix(tenant, upload_id))  # first: what is named is there
        self._store.delete_prefix(f"{upload_prefix(tenant, upload_id)}parts/")


def _arrived(key: str) -> ArrivedPart:
    part_id, size, newlines, is_open = key.rpartition("/")[2].split("-")
    return ArrivedPart(part_id, int(size), int(newlines), is_open == "1")
