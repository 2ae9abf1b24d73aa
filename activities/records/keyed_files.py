"""Files uploaded with an idempotency key, from which their id is derived.

A key belongs to one upload permanently, even after the file is deleted or has expired: ``keys/<tenant>/<file id>``
holds the digest of the upload. Only the upload to which the key is bound may write the file's content, so that an id
never has two different contents.
"""

from __future__ import annotations

from activities.records.catalog import Catalog, FileRecord
from activities.records.keys import record_key
from activities.records.object_index import file_index, index_key
from activities.store.object_store import StoreError


class KeyedFiles:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def bind_key(self, tenant: str, record: FileRecord) -> bool:
        """Bind the key to this upload. Returns whether the key is now bound to it, and not to a different upload."""
        digest = record.digest.encode()
        return self._catalog.store.put_new(f"keys/{tenant}/{record.id}", digest) == digest

    def save(self, tenant: str, record: FileRecord) -> FileRecord:
        """Publish a file whose content is in the store.

        Returns the published record, which is another one if the same upload was published concurrently.

        Raises:
            StoreError: also if the file is being deleted at this moment.
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
