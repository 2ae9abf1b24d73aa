"""Tells a worker that is gone from one that only answers late, as it may on a loaded machine."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from api.gateway.readiness import WORKER_SECONDS, Readiness
from api.gateway.shared_looks import SharedLooks
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


class WorkerSilence:
    """Decides whether workers are gone. One instance serves all batches of an API process."""

    def __init__(self, readiness: Readiness, task_queue: str) -> None:
        self._readiness = readiness
        self._subject = f'task queue "{task_queue}"'
        self._since = float("-inf")
        self._looked_at = float("-inf")
        self._polls: SharedLooks[str, float | None] = SharedLooks(KEPT_SECONDS, 1)

    async def wait(self, *, is_queried: bool) -> Wait | None:
        """Return the wait of a batch whose worker seems to be gone, or ``None`` if it is there or may be only busy.

        Returns ``None`` also if Temporal does not say when a worker last polled.

        Args: ``is_queried`` is whether its workflow was just queried and did not answer. Without a query, as in a list,
            a worker counts as gone only if it certainly is.
        """
        try:
            silent = await self._silent_seconds()
        except UNANSWERED:
            return None
        if silent < WORKER_SECONDS:
            return None  # a busy worker keeps polling
        now = time.monotonic()
        if is_queried:
            if now - self._looked_at > SAME_SECONDS:
                self._since = now
            self._looked_at = now
        is_sure = now - self._looked_at < SAME_SECONDS and self._looked_at - self._since >= SURE_SECONDS
        if silent > POLL_SECONDS or is_sure:
            return self._wait("has no worker that answers", EndsBy.OPERATOR)
        late = f"has a worker that is late to answer (it last asked for work {silent:.0f} s ago) or gone, "
        return self._wait(f"{late}so this status may be old", EndsBy.ITSELF) if is_queried else None

    def _wait(self, reason: str, ends_by: EndsBy) -> Wait:
        return Wait(kind=WaitKind.WORKER, subject=self._subject, reason=reason, ends_by=ends_by)

    async def _silent_seconds(self) -> float:
        """Return the seconds since a worker last began a poll; infinite if Temporal knows of no worker."""
        async with asyncio.timeout(LATE_SECONDS):
            polled_at = await self._polls.get("last", self._readiness.last_poll)
        return time.time() - polled_at if polled_at is not None else float("inf")
