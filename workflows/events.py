"""The history of a batch: its events and its past waits. It is bounded, and it quotes no request and no response."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict

from workflows.waits import Wait, WaitKind

SAME_SECONDS: Final = 60
"""Waits for the same thing that are at most this many seconds apart count as one wait that occurred several times."""
MAX_WAITS: Final = 50
"""Maximum number of waits kept for a batch. The shortest are dropped."""
MAX_WAITS_OF_SHARD: Final = 5
MAX_EVENTS: Final = 100
MAX_REASON: Final = 200

_DIGITS: Final = re.compile(r"[0-9.]+")


class PastWait(BaseModel):
    """A wait that has ended or is still under way."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: WaitKind
    subject: str
    reason: str
    began: int
    """Unix time in seconds."""
    ended: int | None = None
    """Unix time in seconds; ``None`` while the wait is under way."""
    times: int = 1
    """How many times the wait occurred."""

    @classmethod
    def of(cls, wait: Wait, began: int, ended: int | None = None) -> PastWait:
        return cls(kind=wait.kind, subject=wait.subject, reason=wait.reason, began=began, ended=ended)

    @property
    def text(self) -> str:
        return Wait(kind=self.kind, subject=self.subject, reason=self.reason).text

    def is_same(self, kind: WaitKind, subject: str, began: int) -> bool:
        """Return whether a wait of this kind for this subject, which began later, is part of this wait."""
        is_near = self.ended is None or began - self.ended <= SAME_SECONDS
        return (self.kind, self.subject) == (kind, subject) and is_near

    def merged(self, later: PastWait) -> PastWait:
        """Return this wait merged with ``later``, which began no earlier, in the same shard or in another."""
        overlap = self.ended is None or later.began <= self.ended
        is_reworded = _DIGITS.sub("", self.reason) == _DIGITS.sub("", later.reason)
        return self.model_copy(
            update={
                "reason": later.reason if is_reworded else self.reason,
                "ended": None if self.ended is None or later.ended is None else max(self.ended, later.ended),
                "times": max(self.times, later.times) if overlap else self.times + later.times,
            }
        )


class EventType(StrEnum):
    """The events that the workflow itself records."""

    VALIDATED = "validated"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCELLING = "cancelling"
    FILES_WRITTEN = "files_written"


class NotedEvent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    at: int
    """Unix time in seconds."""
    type: EventType
    message: str


class ByTenant(BaseModel):
    """The tenant that made a request through the API."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tenant: str


def who(by: ByTenant | str | None) -> str:
    """Return a phrase for who paused, resumed or cancelled a batch: a tenant, or a user of Temporal with a reason."""
    if isinstance(by, ByTenant):
        return f'by tenant "{by.tenant[:MAX_REASON]}" through the API'
    reason = " ".join((by or "").split())[:MAX_REASON]
    return f"in Temporal ({reason})" if reason else "in Temporal"


def validated_text(requests: int, seconds: float) -> str:
    return f"Validated {requests:,} request{'s' if requests != 1 else ''} in {seconds:.1f} s."


class History(BaseModel):
    """The recorded events and waits of a batch."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    events: list[NotedEvent] = []
    waits: list[PastWait] = []
    dropped: int = 0
    """Number of events and waits that were dropped for lack of room."""

    def with_event(self, event: NotedEvent) -> History:
        if len(self.events) < MAX_EVENTS:
            return self.model_copy(update={"events": [*self.events, event]})
        kept = [self.events[0], *self.events[2:], event]
        return self.model_copy(update={"events": kept, "dropped": self.dropped + 1})

    def with_waits(self, waits: Iterable[PastWait]) -> History:
        more = list(waits)
        if not more:
            return self
        kept, dropped = merge_waits([*self.waits, *more], MAX_WAITS)
        return self.model_copy(update={"waits": kept, "dropped": self.dropped + dropped})

    def ended(self, now: int) -> History:
        """Return the history with every open wait ended at ``now``, which is Unix time in seconds."""
        return self.model_copy(update={"waits": [ended(wait, now) for wait in self.waits]})


def ended(wait: PastWait, now: int) -> PastWait:
    return wait if wait.ended is not None else wait.model_copy(update={"ended": now})


def merge_waits(waits: Iterable[PastWait], maximum: int) -> tuple[list[PastWait], int]:
    """Merge waits that are the same, and drop the shortest until at most ``maximum`` are left.

    Returns:
        The remaining waits in order of their beginning, and the number of dropped occurrences.
    """
    found: list[PastWait] = []
    for wait in sorted(waits, key=lambda wait: wait.began):
        index = next((n for n, one in enumerate(found) if one.is_same(wait.kind, wait.subject, wait.began)), None)
        if index is None:
            found.append(wait)
        else:
            found[index] = found[index].merged(wait)
    longest = sorted(found, key=lambda wait: (wait.ended is not None, wait.began - (wait.ended or 0)))
    dropped = longest[maximum:]
    return [wait for wait in found if wait not in dropped], sum(wait.times for wait in dropped)
