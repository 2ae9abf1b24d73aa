"""Records which batch retries which, in ``batches/<tenant>/<batch id>/retries/<number>`` below the retried batch.

The other records of the retried batch do not change. A batch has one retry at a time: if several are requested
concurrently, one is recorded and all requests return it. Another retry is possible only after a retry that ended
without result files, because that one has taken over nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from activities.records.catalog import Catalog, has_result_files
from activities.records.keys import retries_prefix
from activities.store.object_store import ObjectNotFoundError
from workflows.ids import BatchRef


class Retry(NamedTuple):
    batch_id: str
    codes: list[str]
    """Error codes of the requests that are retried; an empty list stands for all."""


class Retries:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def latest(self, ref: BatchRef) -> Retry | None:
        """Return the latest retry of a batch, even if it ended without result files, or ``None``."""
        key = next(self._catalog.store.list_backwards(retries_prefix(ref)), None)
        return self._read(key) if key else None

    def is_retried(self, ref: BatchRef) -> bool:
        """Return whether the batch has a retry that prevents another one."""
        latest = self.latest(ref)
        return latest is not None and not self._came_to_nothing(ref.tenant, latest)

    def claim(self, ref: BatchRef, wanted: Retry) -> Retry:
        """Record ``wanted`` as the retry of a batch, unless a retry prevents it. Returns the retry that is in force."""
        store, prefix, number = self._catalog.store, retries_prefix(ref), 0
        while True:
            key = f"{prefix}{number:06d}"
            there = msgspec.json.decode(store.put_new(key, msgspec.json.encode(wanted)), type=Retry)
            if there == wanted or not self._came_to_nothing(ref.tenant, there):
                return there
            number += 1

    def release(self, ref: BatchRef, retry: Retry) -> None:
        """Delete the record of a retry that was not started."""
        for key in self._catalog.store.list(retries_prefix(ref)):
            if self._read(key) == retry:
                self._catalog.store.delete(key)

    def _read(self, key: str) -> Retry | None:
        try:
            return msgspec.json.decode(self._catalog.store.get(key), type=Retry)
        except ObjectNotFoundError:
            return None

    def _came_to_nothing(self, tenant: str, retry: Retry) -> bool:
        final = self._catalog.get_final(BatchRef(tenant, retry.batch_id))
        return final is not None and (final.deleted_at is not None or not has_result_files(final))
