"""Tells a worker that is gone from one that only answers late, as it may on a loaded machine."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from api.gateway.readiness import WORKER_SECONDS, Readiness
from api.gateway.workflow_reader import UNANSWERED
from workflows.waits import EndsBy, Wait, WaitKind

LATE_SECONDS: Final = 0.4
"""Time limit for asking Temporal when a worker last polled for work."""
POLL_SECONDS: Final = 65.0
"""Maximum time between the starts of two polls of a live worker: Temporal ends a poll after a minute."""
SURE_SECONDS: Final = 1.5
"""Time from the first lookup without an answer from a worker until the worker is reported as gone."""
SAME_SECONDS: Final = 10.0
"""Maximum time between two lookups without an answer that count as one silence."""
KEPT_SECONDS: Final = 1.0
"""Time for which Temporal's answer is reused for all callers."""

_GONE: Final = "has no worker that answers"


class WorkerSilence:
    """Decides whether workers are gone. One instance serves all batches of an API process."""

    def __init__(self, readiness: Readiness, task_queue: str) -> None:
        self._readiness = readiness
        self._subject = f'task queue "{task_queue}"'
        self._since = float("-inf")
        self._looked_at = float("-inf")
        self._kept: tuple[float, float | None] = (float("-inf"), None)

    async def wait(self) -> Wait | None:
        """Return the wait of a batch whose workflow did not answer a query, or ``None`` if its worker is only busy.

        Returns ``None`` also if Temporal does not say when a worker last polled.
        """
        try:
            silent = await self._silent_seconds()
        except UNANSWERED:
            return None
        if silent < WORKER_SECONDS:
            return None  # a busy worker keeps polling
        now = time.monotonic()
        if now - self._looked_at > SAME_SECONDS:
            self._since = now
        self._looked_at = now
        if silent > POLL_SECONDS or now - self._since >= SURE_SECONDS:
            return self._wait(_GONE, EndsBy.OPERATOR)
        return self._wait(
            f"has a worker that is late to answer (it last asked for work {silent:.0f} s ago) or gone, "
            "so this status may be old"
        )

    async def known_wait(self) -> Wait | None:
        """Return the wait for a list, which queries no workflow: ``None`` unless the worker is certainly gone."""
        try:
            silent = await self._silent_seconds()
        except UNANSWERED:
            return None
        is_sure = time.monotonic() - self._looked_at < SAME_SECONDS and self._looked_at - self._since >= SURE_SECONDS
        return (
            self._wait(_GONE, EndsBy.OPERATOR)
            if silent > POLL_SECONDS or (is_sure and silent >= WORKER_SECONDS)
            else None
        )

    def _wait(self, reason: str, ends_by: EndsBy = EndsBy.ITSELF) -> Wait:
        return Wait(kind=WaitKind.WORKER, subject=self._subject, reason=reason, ends_by=ends_by)

    async def _silent_seconds(self) -> float:
        """Return the seconds since a worker last began a poll; infinite if Temporal knows of no worker.

        Raises the errors of :meth:`Readiness.last_poll`.
        """
        checked_at, polled_at = self._kept
        if time.monotonic() - checked_at >= KEPT_SECONDS:
            async with asyncio.timeout(LATE_SECONDS):
                polled_at = await self._readiness.last_poll()
            self._kept = (time.monotonic(), polled_at)
        return time.time() - polled_at if polled_at is not None else float("inf")
