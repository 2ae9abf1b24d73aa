"""The interface between the routes and the gateway. Only the gateway knows about Temporal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from workflows.ids import BatchRef
from workflows.types import BatchPhase, BatchRecord, BatchSpec
from workflows.waits import EndsBy, WaitKind


class IdempotencyConflictError(Exception):
    """The idempotency key belongs to a batch with different parameters."""


class TemporalUnavailableError(Exception):
    """Temporal does not answer. A later attempt may succeed."""


class BatchHasEndedError(Exception):
    """The batch has ended already."""

    def __init__(self, status: BatchPhase) -> None:
        super().__init__(status.value)
        self.status = status


class BatchIsRunningError(Exception):
    """The batch has not ended yet."""


class Waiting(BaseModel):
    """A reason why a batch makes no progress."""

    model_config = ConfigDict(frozen=True)

    kind: WaitKind
    subject: str
    """The name and address of what the batch waits for."""
    reason: str
    ends_by: EndsBy
    requests: int | None = None
    """Number of the batch's requests that are affected, or ``None`` if unknown."""
    next_attempt_at: int | None = None
    """Unix time in seconds."""


class SharedUpstream(BaseModel):
    """The settings of an upstream that protect its other clients."""

    model_config = ConfigDict(frozen=True)

    name: str
    interactive_headroom: float
    """The share of the upstream's capacity that is left to its other clients."""
    body: dict[str, Any]
    """Members that are added to request bodies that do not set them, for example a priority."""


class Progress(BaseModel):
    """The progress of a running batch. ``None`` means currently unknown."""

    model_config = ConfigDict(frozen=True)

    requests_per_second: float | None = None
    eta_seconds: int | None = None
    in_flight: int | None = None
    in_flight_limit: int | None = None
    """The current maximum number of requests in flight: the sum, over upstreams, of the lowest limit of a worker."""
    shared_upstreams: list[SharedUpstream] = []
    """The upstreams of unfinished requests of the batch whose settings protect other clients."""
    waiting: Waiting | None = None
    waiting_reason: str | None = None
    """``waiting`` as one sentence, with the time of the next attempt and the end of the completion window."""
    next_attempt_at: int | None = None
    """Unix time in seconds."""
    as_of: int | None = None
    """Unix time in seconds at which Temporal was asked; ``None`` if this process has no answer from it yet."""


@dataclass(frozen=True)
class BatchView:
    """The current state of a batch as far as it is known."""

    record: BatchRecord
    """The record, with counts that include running shards."""
    progress: Progress | None


class Gateway(Protocol):
    """Access to batches, whether their state is in Temporal or in the store.

    Raises:
        StoreError: from every method except ``missing``, if the store cannot be used.
    """

    async def create(self, spec: BatchSpec, *, idempotent: bool) -> BatchView:
        """Start a batch and return it. If it is idempotent and exists already, return the existing batch.

        Raises:
            IdempotencyConflictError: the id belongs to a batch with different parameters.
            TemporalUnavailableError: the batch was not started, or it is unknown whether it was.
        """
        ...

    async def view(self, record: BatchRecord) -> BatchView:
        """Return the current state of the batch of a stored record; while Temporal is down, the last known state."""
        ...

    async def glances(self, records: Sequence[BatchRecord]) -> list[BatchView]:
        """Return the batches of stored records for a list, with what is known of them within a short time.

        The result of a slower look at a batch is kept for the next caller. :attr:`Progress.as_of` says how old each is.
        """
        ...

    async def find(self, ref: BatchRef) -> BatchView:
        """Return the batch with this id.

        Raises:
            ObjectNotFoundError: it does not exist.
            TemporalUnavailableError: the store has no record of it, and it is unknown whether it was started.
        """
        ...

    async def cancel(self, ref: BatchRef) -> BatchView:
        """Cancel a batch and return it. A batch that is already cancelling or cancelled is returned unchanged.

        Raises:
            ObjectNotFoundError: it does not exist.
            BatchHasEndedError: it has ended with another outcome.
            TemporalUnavailableError: the request did not reach it, or it is unknown whether it came in time.
        """
        ...

    async def set_paused(self, ref: BatchRef, paused: bool) -> BatchView:
        """Pause or resume a batch. It is no error if the batch is already in that state.

        Raises:
            ObjectNotFoundError: it does not exist.
            BatchHasEndedError: it has ended.
            TemporalUnavailableError: the request did not reach it.
        """
        ...

    async def delete(self, ref: BatchRef) -> None:
        """Delete a batch that has ended, and its files.

        Raises:
            ObjectNotFoundError: it does not exist.
            BatchIsRunningError: it has not ended.
        """
        ...

    async def count_by_status(self) -> dict[str, int]:
        """Return the number of batches in Temporal by status.

        Raises:
            TemporalUnavailableError: Temporal does not answer.
        """
        ...

    async def missing(self) -> list[str]:
        """Return why batches cannot be created or run at present, in words for an operator; empty if they can."""
        ...
