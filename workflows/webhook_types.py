"""The models of webhooks that cross Temporal. They follow the rules in :mod:`workflows.types`."""

from __future__ import annotations

from workflows.types import BatchModel, BatchSpec, BatchStatus, Model


class WebhookInput(BatchModel):
    """The event that a batch has ended, for all endpoints that receive it."""

    endpoints: list[str]
    """Names of the endpoints. Only the worker knows their addresses and secrets."""
    event: str
    """Type of the event, for example ``batch.completed``."""
    created_at: int
    """Unix time in seconds at which the batch ended."""

    @classmethod
    def of(cls, spec: BatchSpec, status: BatchStatus) -> WebhookInput:
        """Return the event of a batch whose status is terminal."""
        return cls(
            batch_id=spec.batch_id,
            tenant=spec.tenant,
            endpoints=spec.webhooks,
            event=f"batch.{status.phase}",
            created_at=status.ended_at or 0,
        )


class WebhookResult(Model):
    delivered: int = 0
    """Number of endpoints that accepted the event; the others do not subscribe to events of this type."""


class DeliverWebhookInput(Model):
    endpoint: str
    tenant: str
    batch_id: str
    event: str
    created_at: int


class DeliverWebhookResult(Model):
    delivered: bool
    """False if the endpoint does not subscribe to events of this type."""
    status: int | None = None
    """HTTP status of the endpoint's response; ``None`` if nothing was sent."""
