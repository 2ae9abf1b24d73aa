"""Which batch is the retry of which: ``batches/<tenant>/<batch id>/retries/<number>``, written beside the records of
the batch that is retried, which do not change.

A batch has one retry at a time. Of several that are asked for at once, one is noted, and all are answered with it. Only
a retry that has ended without result files, so that nothing was taken over into it, makes room for another.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from activities.records.catalog import Catalog, has_result_files
from activities.records.keys import retries_prefix
from activities.store.object_store import ObjectNotFoundError


class Retry(NamedTuple):
    batch_id: str
    codes: list[str]
    """Of the requests that are retried; none stand for all."""


class Retries:
    """All calls block.

    Raises:
        StoreError: from every method, when the store cannot be used.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def latest(self, tenant: str, batch_id: str) -> Retry | None:
        """The retry of a batch, also where it came to nothing."""
        key = next(self._catalog.store.list_backwards(retries_prefix(tenant, batch_id)), None)
        return self._read(key) if key else None

    def is_retried(self, tenant: str, batch_id: str) -> bool:
        """Whether the batch has a retry that leaves no room for another."""
        latest = self.latest(tenant, batch_id)
        return latest is not None and not self._came_to_nothing(tenant, latest)

    def claim(self, tenant: str, batch_id: str, wanted: Retry) -> Retry:
        """The retry of a batch: the one that is there, unless it came to nothing, or else ``wanted``."""
        store, prefix, number = self._catalog.store, retries_prefix(tenant, batch_id), 0
        while True:
            key = f"{prefix}{number:06d}"
            there = msgspec.json.decode(store.put_new(key, msgspec.json.encode(wanted)), type=Retry)
            if there == wanted or not self._came_to_nothing(tenant, there):
                return there
            number += 1

    def release(self, tenant: str, batch_id: str, retry: Retry) -> None:
        """Forget a retry that was not started."""
        for key in self._catalog.store.list(retries_prefix(tenant, batch_id)):
            if self._read(key) == retry:
                self._catalog.store.delete(key)

    def _read(self, key: str) -> Retry | None:
        try:
            return msgspec.json.decode(self._catalog.store.get(key), type=Retry)
        except ObjectNotFoundError:
            return None

    def _came_to_nothing(self, tenant: str, retry: Retry) -> bool:
        final = self._catalog.get_final(tenant, retry.batch_id)
        return final is not None and (final.deleted_at is not None or not has_result_files(final))
