"""What the routes ask of the gateway, and what it answers. The gateway alone knows that there is a Temporal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from workflows.types import BatchPhase, BatchRecord, BatchSpec


class IdempotencyConflict(Exception):
    """The idempotency key belongs to a batch that was created with other parameters."""


class TemporalUnavailable(Exception):
    """Temporal does not answer. Trying again later may help."""


class BatchHasEnded(Exception):
    """The batch has ended already."""

    def __init__(self, status: BatchPhase) -> None:
        super().__init__(status.value)
        self.status = status


class Progress(BaseModel):
    """How a running batch gets on. ``None`` is what cannot be told just now."""

    model_config = ConfigDict(frozen=True)

    requests_per_second: float | None = None
    eta_seconds: int | None = None
    in_flight: int | None = None
    in_flight_limit: int | None = None
    """How many the upstreams of the batch are sent at once just now, by the slowest of the workers that run it."""
    waiting_reason: str | None = None
    next_attempt_at: int | None = None
    """Unix seconds."""


@dataclass(frozen=True)
class BatchView:
    """What is known of a batch right now."""

    record: BatchRecord
    """Its counts include running shards."""
    progress: Progress | None


class Gateway(Protocol):
    """Batches as they are, wherever that is known.

    Raises:
        StoreError: from every method but ``missing``, when the store cannot be used.
    """

    async def create(self, spec: BatchSpec, *, idempotent: bool) -> BatchView:
        """Start a batch. An idempotent one that is there already is answered as it is.

        Raises:
            IdempotencyConflict: its id belongs to a batch of another digest.
            TemporalUnavailable: nothing was started, or it is not known whether.
        """
        ...

    async def view(self, record: BatchRecord) -> BatchView:
        """The batch of a stored record as it is now; as recorded while Temporal is away."""
        ...

    async def find(self, tenant: str, batch_id: str) -> BatchView:
        """The batch of an id.

        Raises:
            ObjectNotFound: there is none.
            TemporalUnavailable: the store has no record of it, and whether it is started is not known.
        """
        ...

    async def cancel(self, tenant: str, batch_id: str) -> BatchView:
        """Ask a batch to stop; one that is stopping or cancelled is answered as it is.

        Raises:
            ObjectNotFound: there is none.
            BatchHasEnded: it has ended otherwise.
            TemporalUnavailable: it was not asked.
        """
        ...

    async def set_paused(self, tenant: str, batch_id: str, paused: bool) -> BatchView:
        """Let a batch send nothing more for now, or go on; what it is already is no error.

        Raises:
            ObjectNotFound: there is none.
            BatchHasEnded: it has.
            TemporalUnavailable: it was not asked.
        """
        ...

    async def count_by_status(self) -> dict[str, int]:
        """How many batches Temporal knows in each status.

        Raises:
            TemporalUnavailable: it does not say.
        """
        ...

    async def missing(self) -> list[str]:
        """What keeps batches from being created and run just now, in words for an operator."""
        ...
