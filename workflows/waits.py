"""What a batch waits for: one model, for the activities that meet it, the API, the commands and Temporal's UI.

Activities send it through Temporal, in heartbeats and in the details of their failures. So it holds names, addresses
and our own words only: no body of a request or a response, and no key.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class WaitKind(StrEnum):
    """What is waited for."""

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
    """Who can end a wait."""

    ITSELF = "itself"
    """It may pass without anyone doing anything: a restart of an engine, a peak of load."""
    OPERATOR = "operator"
    """Whoever runs Everbatch or the upstream has to act."""
    USER = "user"


class Wait(BaseModel):
    """One reason why a batch, or a part of it, does not get on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: WaitKind
    subject: str
    """What is waited for, by name and address: ``upstream "gpu" (http://gpu-1:8000/v1)``."""
    reason: str
    """What is the matter with it, as a predicate: ``refuses connections``."""
    ends_by: EndsBy = EndsBy.ITSELF
    requests: int = 0
    """That wait for it; zero where that is not known."""

    @property
    def text(self) -> str:
        return f"{self.subject} {self.reason}"


def store_wait(said: str, *, is_lasting: bool) -> Wait:
    """Args: ``said`` is what is the matter; ``is_lasting`` is whether it stays until somebody acts."""
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
