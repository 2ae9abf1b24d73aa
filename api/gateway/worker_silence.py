"""Whether the worker that does not answer is gone, or only late, as it may be on a loaded machine."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from api.gateway.readiness import WORKER_SECONDS, Readiness
from api.gateway.workflow_reader import UNANSWERED
from workflows.waits import EndsBy, Wait, WaitKind

LATE_SECONDS: Final = 0.4
"""To ask Temporal when a worker last asked for work."""
POLL_SECONDS: Final = 65.0
"""A worker that is there begins a poll at least so often."""
SURE_SECONDS: Final = 1.5
"""From the first look that no worker answers to one that says so, if none does."""
SAME_SECONDS: Final = 10.0
"""Two looks that are further apart have nothing to do with each other."""
KEPT_SECONDS: Final = 1.0
"""For so long one answer serves all lists."""

_GONE: Final = "has no worker that answers"


class WorkerSilence:
    """Shared by all batches of an API process."""

    def __init__(self, readiness: Readiness, task_queue: str) -> None:
        self._readiness = readiness
        self._subject = f'task queue "{task_queue}"'
        self._since = float("-inf")
        self._looked_at = float("-inf")
        self._kept: tuple[float, float | None] = (float("-inf"), None)

    async def wait(self) -> Wait | None:
        """What a batch waits for whose workflow has not answered; ``None`` where its worker is only busy."""
        try:
            silent = await self._silent_seconds()
        except UNANSWERED:
            return None
        if silent < WORKER_SECONDS:
            return None  # a busy one goes on polling
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
        """The same for lists, which ask no worker: only where it is sure."""
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
        """Since a worker began a poll.

        Raises as :meth:`Readiness.last_poll`.
        """
        asked_at, polled_at = self._kept
        if time.monotonic() - asked_at >= KEPT_SECONDS:
            async with asyncio.timeout(LATE_SECONDS):
                polled_at = await self._readiness.last_poll()
            self._kept = (time.monotonic(), polled_at)
        return time.time() - polled_at if polled_at is not None else float("inf")
