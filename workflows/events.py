"""The life of a batch: what has happened to it, and for what it has waited. Bounded, and in our own words only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict

from workflows.waits import Wait, WaitKind

SAME_SECONDS: Final = 60
"""Waits for the same thing that are no further apart are one, which came several times."""
MAX_WAITS: Final = 50
"""Of a batch; the shortest are dropped."""
MAX_WAITS_OF_SHARD: Final = 5
MAX_EVENTS: Final = 100
MAX_REASON: Final = 200

_DIGITS: Final = re.compile(r"[0-9.]+")


class PastWait(BaseModel):
    """A wait that was, or is still under way."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: WaitKind
    subject: str
    reason: str
    began: int
    """Unix seconds."""
    ended: int | None = None
    times: int = 1

    @classmethod
    def of(cls, wait: Wait, began: int, ended: int | None = None) -> PastWait:
        return cls(kind=wait.kind, subject=wait.subject, reason=wait.reason, began=began, ended=ended)

    @property
    def text(self) -> str:
        return Wait(kind=self.kind, subject=self.subject, reason=self.reason).text

    def is_same(self, kind: WaitKind, subject: str, began: int) -> bool:
        """Whether a wait for this that began later belongs to it."""
        is_near = self.ended is None or began - self.ended <= SAME_SECONDS
        return (self.kind, self.subject) == (kind, subject) and is_near

    def merged(self, later: PastWait) -> PastWait:
        """With one that began no earlier, in the same shard or in another."""
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
    """What the workflow itself notes."""

    VALIDATED = "validated"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCELLING = "cancelling"
    FILES_WRITTEN = "files_written"


class NotedEvent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    at: int
    """Unix seconds."""
    type: EventType
    message: str


class ByTenant(BaseModel):
    """Who asks through the API."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tenant: str


def who(by: ByTenant | str | None) -> str:
    """Who has paused, resumed or cancelled a batch.

    Args: ``by`` is a tenant, or the reason that somebody gave to Temporal, if any.
    """
    if isinstance(by, ByTenant):
        return f'by tenant "{by.tenant[:MAX_REASON]}" through the API'
    reason = " ".join((by or "").split())[:MAX_REASON]
    return f"in Temporal ({reason})" if reason else "in Temporal"


def validated_text(requests: int, seconds: float) -> str:
    return f"Validated {requests:,} request{'s' if requests != 1 else ''} in {seconds:.1f} s."


class History(BaseModel):
    """What is kept of the life of a batch."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    events: list[NotedEvent] = []
    waits: list[PastWait] = []
    dropped: int = 0
    """Events and waits that there was no room for."""

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
        """Of a batch that waits no more."""
        return self.model_copy(update={"waits": [ended(wait, now) for wait in self.waits]})


def ended(wait: PastWait, now: int) -> PastWait:
    return wait if wait.ended is not None else wait.model_copy(update={"ended": now})


def merge_waits(waits: Iterable[PastWait], maximum: int) -> tuple[list[PastWait], int]:
    """These waits in order, those that are the same as one; and how many were dropped, the shortest first."""
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
