"""Webhooks of single batches: their addresses and secrets are kept beside the batch, and never come into Temporal."""

from __future__ import annotations

from typing import Final

import msgspec

from activities.records.keys import webhook_key
from activities.store.object_store import ObjectStore

BATCH_WEBHOOK: Final = "(batch)"
"""Its name among those of the operator, of which none can be called so."""


class BatchWebhook(msgspec.Struct, frozen=True):
    url: str
    secret: str
    events: list[str] | None = None
    """Their types; ``None``: all."""


class BatchWebhooks:
    """All calls block.

    Raises:
        StoreError: from every method, when the store cannot be used.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def save(self, tenant: str, batch_id: str, webhook: BatchWebhook) -> None:
        """Keep the webhook of a batch that is to be started. That of one which is there already stays."""
        self._store.put_new(webhook_key(tenant, batch_id), msgspec.json.encode(webhook))

    def get(self, tenant: str, batch_id: str) -> BatchWebhook:
        """Raises:
        ObjectNotFoundError: it has none, or ended so long ago that nobody is told any more.
        """
        return msgspec.json.decode(self._store.get(webhook_key(tenant, batch_id)), type=BatchWebhook)

    def delete(self, tenant: str, batch_id: str) -> None:
        self._store.delete(webhook_key(tenant, batch_id))
