"""Waits for Temporal itself."""

from __future__ import annotations

from typing import Final

from activities.temporal.batch_runs import is_not_found, is_unknown
from workflows.waits import EndsBy, Wait, WaitKind

CANNOT_WRITE: Final = "takes no new workflows; its database may be full"

STATUS_SECONDS: Final = 2.0
"""Time limit in seconds for all calls to Temporal that serve one status request."""
QUIET_SECONDS: Final = 3.0
"""A call that timed out does not mean that Temporal is down if it answered another call within this time."""

SEALED: Final = Wait(
    kind=WaitKind.TEMPORAL,
    subject="the API",
    reason="has no payload key for this batch, and cannot read its state",
    ends_by=EndsBy.OPERATOR,
)


def temporal_wait(address: str, reason: str, ends_by: EndsBy = EndsBy.ITSELF) -> Wait:
    return Wait(kind=WaitKind.TEMPORAL, subject=f"Temporal at {address}", reason=reason, ends_by=ends_by)


def ended_wait(reason: str) -> Wait:
    """Return the wait of a batch whose run was ended in Temporal."""
    said = f"was ended in Temporal ({reason}); the batch will be cancelled"
    return Wait(kind=WaitKind.TEMPORAL, subject="the workflow of this batch", reason=said)


def unanswered_wait(error: Exception, address: str, namespace: str, silent_seconds: float) -> Wait:
    """Return the wait for Temporal after a call to it has failed with ``error``.

    Args: ``silent_seconds`` have passed since Temporal last answered any call.
    """
    if is_not_found(error) and not is_unknown(error):
        return temporal_wait(address, f"has no namespace {namespace}", EndsBy.OPERATOR)
    if not isinstance(error, TimeoutError):
        return temporal_wait(address, "does not answer")
    # On a loaded machine Temporal is late now and then, but has answered other calls meanwhile.
    if silent_seconds <= QUIET_SECONDS:
        return temporal_wait(address, "answers late, so this status may be some seconds old")
    return temporal_wait(address, f"has not answered within {STATUS_SECONDS:.0f} s")
