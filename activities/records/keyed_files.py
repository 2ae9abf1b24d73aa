"""Files uploaded with an idempotency key, from which their id is derived.

A key stands for one upload for good, also once the file is deleted or has expired: ``keys/<tenant>/<file id>`` holds
the digest of the upload. Only the upload that has bound the key may write the file's content, so that no
two contents meet under one id.
"""

from __future__ import annotations

from activities.records.catalog import Catalog, FileRecord
from activities.records.keys import record_key
from activities.records.object_index import file_index, index_key
from activities.store.object_store import StoreError


class KeyedFiles:
    """All calls block.

    Raises:
        StoreError: from every method, when the store cannot be used.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def bind_key(self, tenant: str, record: FileRecord) -> bool:
        """Let the key stand for this upload, if it stands for no other; whether it does."""
        digest = record.digest.encode()
        return self._catalog.store.put_new(f"keys/{tenant}/{record.id}", digest) == digest

    def save(self, tenant: str, record: FileRecord) -> FileRecord:
        """Publish a file whose content is in the store; what is there then, where the same upload did at that time.

        Raises:
            StoreError: also where somebody deletes the file at this moment.
        """
        store, index = self._catalog.store, index_key(tenant, file_index(record.purpose), record.index_entry)
        store.put(index, b"")
        saved = store.put_new(record_key(tenant, record.id), record.model_dump_json().encode())
        published = FileRecord.model_validate_json(saved)
        if published.index_entry != record.index_entry:
            store.delete(index)
        if not self._catalog.is_whole(tenant, record.id):
            self._catalog.replace_file(tenant, published)
            raise StoreError("the file of this idempotency key is being deleted")
        return published
