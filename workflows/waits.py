"""The reasons why a batch waits, as one model for the activities, the API, the commands and Temporal's UI.

Activities send waits through Temporal, in heartbeats and in the details of their failures. A wait therefore holds only
names, addresses and texts written by Everbatch: never a request or response body, and never an API key.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class WaitKind(StrEnum):
    """What a batch waits for."""

    UPSTREAM = "upstream"
    MODEL = "model"
    STORE = "store"
    TEMPORAL = "temporal"
    WORKER = "worker"
    OTHER_BATCHES = "other_batches"
    PAUSE = "pause"
    VALIDATING = "validating"
    FINALIZING = "finalizing"


class EndsBy(StrEnum):
    """The party that can end a wait."""

    ITSELF = "itself"
    """The wait may pass without any action, for example when an engine restarts or a peak of load subsides."""
    OPERATOR = "operator"
    """The operator of Everbatch or of the upstream has to act."""
    USER = "user"
    """A user of the API has to act."""


class Wait(BaseModel):
    """One reason why a batch, or a part of it, makes no progress."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: WaitKind
    subject: str
    """What the batch waits for, with name and address: ``upstream "gpu" (http://gpu-1:8000/v1)``."""
    reason: str
    """The problem with the subject, as a predicate: ``refuses connections``."""
    ends_by: EndsBy = EndsBy.ITSELF
    requests: int = 0
    """Number of requests that wait; zero if it is not known."""

    @property
    def text(self) -> str:
        return f"{self.subject} {self.reason}"


def store_wait(said: str, *, is_lasting: bool) -> Wait:
    """Return a wait for the store. Args: ``is_lasting`` is whether the problem lasts until the operator acts."""
    ends_by = EndsBy.OPERATOR if is_lasting else EndsBy.ITSELF
    return Wait(kind=WaitKind.STORE, subject="the store", reason=f"cannot be used: {said}", ends_by=ends_by)


def worker_wait(reason: str, ends_by: EndsBy = EndsBy.ITSELF) -> Wait:
    return Wait(kind=WaitKind.WORKER, subject="the worker", reason=reason, ends_by=ends_by)


def pause_wait(reason: str, ends_by: EndsBy = EndsBy.USER) -> Wait:
    return Wait(kind=WaitKind.PAUSE, subject="the batch", reason=reason, ends_by=ends_by)


def validating_wait() -> Wait:
    return Wait(kind=WaitKind.VALIDATING, subject="the input file", reason="is being validated")


def finalizing_wait() -> Wait:
    return Wait(kind=WaitKind.FINALIZING, subject="the result files", reason="are being written")
