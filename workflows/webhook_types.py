"""The models of webhooks that cross Temporal: see :mod:`workflows.types` for the rules that they keep."""

from __future__ import annotations

from workflows.types import BatchSpec, BatchStatus, Model


class WebhookInput(Model):
    """The end of a batch, for all webhooks that receive it."""

    batch_id: str
    tenant: str
    endpoints: list[str]
    """Their names; the worker knows addresses and secrets."""
    event: str
    """For example ``batch.completed``."""
    created_at: int
    """When it happened, in Unix seconds."""

    @classmethod
    def of(cls, spec: BatchSpec, status: BatchStatus) -> WebhookInput:
        """Of a batch that has come to its terminal state."""
        return cls(
            batch_id=spec.batch_id,
            tenant=spec.tenant,
            endpoints=spec.webhooks,
            event=f"batch.{status.phase}",
            created_at=status.ended_at or 0,
        )


class WebhookResult(Model):
    delivered: int = 0
    """To so many endpoints; the others do not want events of this type."""


class DeliverWebhookInput(Model):
    endpoint: str
    tenant: str
    batch_id: str
    event: str
    created_at: int


class DeliverWebhookResult(Model):
    delivered: bool
    """False where the endpoint does not want events of this type."""
    status: int | None = None
    """Of the HTTP answer."""
