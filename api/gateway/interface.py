"""The interface between the routes and the gateway. Only the gateway knows about Temporal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from workflows.types import BatchPhase, BatchRecord, BatchSpec
from workflows.waits import EndsBy, WaitKind


class IdempotencyConflictError(Exception):
    """The idempotency key belongs to a batch with different parameters."""


class TemporalUnavailableError(Exception):
    """Temporal does not answer. Trying again later may help."""


class BatchHasEndedError(Exception):
    """The batch has ended already."""

    def __init__(self, status: BatchPhase) -> None:
        super().__init__(status.value)
        self.status = status


class BatchIsRunningError(Exception):
    """The batch has not ended yet."""


class Waiting(BaseModel):
    """What a batch waits for."""

    model_config = ConfigDict(frozen=True)

    kind: WaitKind
    subject: str
    """What is waited for, by name and address."""
    reason: str
    """What is the matter with it."""
    ends_by: EndsBy
    """Who can end the wait."""
    requests: int | None = None
    """How many of the batch's requests wait for it, where that is known."""
    next_attempt_at: int | None = None
    """Unix seconds."""


class SharedUpstream(BaseModel):
    """What the settings of an upstream say for the sake of its other clients."""

    model_config = ConfigDict(frozen=True)

    name: str
    interactive_headroom: float
    """The share of its capacity that is left to them."""
    body: dict[str, Any]
    """Members that are added to requests which do not set them, for example a priority."""


class Progress(BaseModel):
    """The progress of a running batch. ``None``: currently unknown."""

    model_config = ConfigDict(frozen=True)

    requests_per_second: float | None = None
    eta_seconds: int | None = None
    in_flight: int | None = None
    in_flight_limit: int | None = None
    """How many the upstreams of the batch are sent at once just now, by the slowest of the workers that run it."""
    shared_upstreams: list[SharedUpstream] = []
    """Those that requests of the batch are for just now, and whose settings have regard for other clients."""
    waiting: Waiting | None = None
    waiting_reason: str | None = None
    """The same, and when it is tried again and the completion window ends, as one sentence."""
    next_attempt_at: int | None = None
    """Unix seconds."""
    as_of: int | None = None
    """When Temporal was asked for all this, in Unix seconds; ``None`` where this process has no answer of it yet."""


@dataclass(frozen=True)
class BatchView:
    """The current state of a batch, as far as it is known."""

    record: BatchRecord
    """Its counts include running shards."""
    progress: Progress | None


class Gateway(Protocol):
    """Access to batches, whether their state is in Temporal or in the store.

    Raises:
        StoreError: from every method but ``missing``, when the store cannot be used.
    """

    async def create(self, spec: BatchSpec, *, idempotent: bool) -> BatchView:
        """Start a batch. An idempotent one that is there already is answered as it is.

        Raises:
            IdempotencyConflictError: its id belongs to a batch of another digest.
            TemporalUnavailableError: nothing was started, or it is not known whether.
        """
        ...

    async def view(self, record: BatchRecord) -> BatchView:
        """The batch of a stored record as it is now; or as recorded, while Temporal is down."""
        ...

    async def glances(self, records: Sequence[BatchRecord]) -> list[BatchView]:
        """The batches of stored records as they are known within a moment, which :attr:`Progress.as_of` says.

        For lists: looks that take longer are for the next caller.
        """
        ...

    async def find(self, tenant: str, batch_id: str) -> BatchView:
        """The batch of an id.

        Raises:
            ObjectNotFoundError: there is none.
            TemporalUnavailableError: the store has no record of it, and whether it is started is not known.
        """
        ...

    async def cancel(self, tenant: str, batch_id: str) -> BatchView:
        """Ask a batch to stop; one that is stopping or cancelled is answered as it is.

        Raises:
            ObjectNotFoundError: there is none.
            BatchHasEndedError: it has ended otherwise.
            TemporalUnavailableError: it was not asked.
        """
        ...

    async def set_paused(self, tenant: str, batch_id: str, paused: bool) -> BatchView:
        """Let a batch send nothing more for now, or go on; what it is already is no error.

        Raises:
            ObjectNotFoundError: there is none.
            BatchHasEndedError: it has.
            TemporalUnavailableError: it was not asked.
        """
        ...

    async def delete(self, tenant: str, batch_id: str) -> None:
        """Delete a batch that has ended, with its files.

        Raises:
            ObjectNotFoundError: there is none.
            BatchIsRunningError: it has not ended.
        """
        ...

    async def count_by_status(self) -> dict[str, int]:
        """How many batches Temporal knows in each status.

        Raises:
            TemporalUnavailableError: it does not say.
        """
        ...

    async def missing(self) -> list[str]:
        """What keeps batches from being created and run just now, in words for an operator."""
        ...
