"""Webhooks of single batches. Their URLs and secrets are stored with the batch and never enter Temporal."""

from __future__ import annotations

from typing import Final

import msgspec

from activities.records.keys import webhook_key
from activities.store.object_store import ObjectStore
from workflows.ids import BatchRef

BATCH_WEBHOOK: Final = "(batch)"
"""Name of a batch's own webhook. The names of the operator's webhooks cannot contain parentheses."""


class BatchWebhook(msgspec.Struct, frozen=True):
    url: str
    secret: str
    events: list[str] | None = None
    """Types of the events to send; ``None`` for all."""


class BatchWebhooks:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def save(self, ref: BatchRef, webhook: BatchWebhook) -> None:
        """Store the webhook of a batch, before its start."""
        self._store.put(webhook_key(ref), msgspec.json.encode(webhook))

    def get(self, ref: BatchRef) -> BatchWebhook:
        """Raises:
        ObjectNotFoundError: the batch has none, or ended so long ago that its webhook was deleted.
        """
        return msgspec.json.decode(self._store.get(webhook_key(ref)), type=BatchWebhook)

    def delete(self, ref: BatchRef) -> None:
        self._store.delete(webhook_key(ref))
