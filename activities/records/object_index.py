"""The index that lists files and batches by time: empty objects whose keys hold all information.

Entries sort newest first, in nested folders of 28 hours, 17 minutes and one second, so that reading a page only reads
the folders that it needs. Each file purpose has a separate index.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from activities.store.object_store import ObjectStore

PURPOSES: Final = ("assistants", "batch", "batch_output", "evals", "fine-tune", "user_data", "vision")
"""The purposes of files."""
_LAST_MS: Final = 9_999_999_999_999


class IndexEntry(NamedTuple):
    """The entry of a file or a batch. It may outlive the file or batch."""

    id: str
    created_ms: int

    @property
    def name(self) -> str:
        """The key below the prefix of its index; entries are listed in the order of these names."""
        inverted = f"{_LAST_MS - self.created_ms:013d}"
        return f"{inverted[:5]}/{inverted[5:7]}/{inverted[7:10]}/{inverted}-{self.id}"


def file_index(purpose: str) -> str:
    """Return the kind of the index that lists files of a purpose."""
    return f"files/{purpose}"


def index_key(tenant: str, kind: str, entry: IndexEntry) -> str:
    return f"{_prefix(tenant, kind)}{entry.name}"


def index_entries(
    store: ObjectStore, tenant: str, kinds: Iterable[str], after: IndexEntry | None, ascending: bool
) -> Iterator[IndexEntry]:
    """Yield the entries of several indexes, newest first, or oldest first if ``ascending``. Args: ``after`` is the
    entry after which to begin, in that order.
    """
    lists = [_entries(store, tenant, kind, after, ascending) for kind in kinds]
    return heapq.merge(*lists, key=lambda entry: entry.name, reverse=ascending)


def _entries(
    store: ObjectStore, tenant: str, kind: str, after: IndexEntry | None, ascending: bool
) -> Iterator[IndexEntry]:
    prefix = _prefix(tenant, kind)
    position = index_key(tenant, kind, after) if after else ""
    keys = store.list_backwards(prefix, position) if ascending else store.list(prefix, position)
    for key in keys:
        inverted, _, object_id = key.rpartition("/")[2].partition("-")
        yield IndexEntry(object_id, _LAST_MS - int(inverted))


def drop_entries(store: ObjectStore, tenant: str, file_id: str) -> None:
    """Delete all entries of a file whose purpose and time are not known. Reads all file indexes."""
    for purpose in PURPOSES:
        for key in store.list(_prefix(tenant, file_index(purpose))):
            if key.endswith(f"-{file_id}"):
                store.delete(key)


def _prefix(tenant: str, kind: str) -> str:
    return f"index/{tenant}/{kind}/"
