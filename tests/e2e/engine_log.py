"""The fake engine's log, read while it grows: the witness of what was sent, and sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

SECOND: Final = 1_000_000_000


class Event(NamedTuple):
    at: int
    """By ``time.monotonic_ns``."""
    kind: str
    """``recv``, ``sent`` or ``abort``."""
    custom_id: str
    status: int


class EngineLog:
    """Call :meth:`read` before looking; lines come at most 50 ms after their event."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self.answered: dict[str, int] = {}
        """When each request was first answered with 200."""
        self._offset = 0
        self._rest = b""

    def read(self) -> EngineLog:
        if not self.path.exists():
            return self
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            at, kind, custom_id, status = line.decode().split(" ")
            event = Event(int(at), kind, custom_id, int(status))
            self.events.append(event)
            if kind == "sent" and event.status == 200:
                self.answered.setdefault(custom_id, event.at)
        return self

    def count(self, kind: str, since: int = 0, until: float = float("inf")) -> int:
        return sum(event.kind == kind and since < event.at <= until for event in self.events)

    def received(self, custom_id: str) -> int:
        """How often it was sent."""
        return sum(event.kind == "recv" and event.custom_id == custom_id for event in self.events)

    def unanswered(self, since: float, until: int) -> set[str]:
        """Received by ``until``, and by ``since`` not answered with 200."""
        received = {event.custom_id for event in self.events if event.kind == "recv" and event.at <= until}
        return {name for name in received if self.answered.get(name, until) >= since}

    def open_at(self, moment: int) -> set[str]:
        """Received, and neither answered nor dropped."""
        left: Counter[str] = Counter()
        for event in self.events:
            if event.at <= moment:
                left[event.custom_id] += 1 if event.kind == "recv" else -1
        return {name for name, count in left.items() if count > 0}

    def sent_again(self) -> Counter[str]:
        """How often a request came although it had been answered, was being answered, or the client had left it.

        A request that the engine refused or answered by half is to be sent again, so that counts for nothing.
        """
        under_way: Counter[str] = Counter()
        worked_on: set[str] = set()
        again: Counter[str] = Counter()
        for event in self.events:
            if event.kind == "recv":
                if under_way[event.custom_id] or event.custom_id in worked_on:
                    again[event.custom_id] += 1
                under_way[event.custom_id] += 1
                continue
            under_way[event.custom_id] -= 1
            if event.kind == "abort" or event.status == 200:
                worked_on.add(event.custom_id)
        return again

    def next_new_answer(self, after: int) -> float | None:
        """Seconds from ``after`` to the next first answer of a request."""
        later = [at for at in self.answered.values() if at > after]
        return (min(later) - after) / SECOND if later else None

    def rate(self, since: int, until: int) -> float:
        """Answers a second."""
        return sum(since < at <= until for at in self.answered.values()) / ((until - since) / SECOND)

    def full_rate_after(self, moment: int, rate: float, window: float = 0.5) -> float | None:
        """Seconds from ``moment`` until answers come at this rate, taken over ``window`` seconds."""
        times = sorted(at for at in self.answered.values() if at > moment)
        wanted = max(1, int(rate * window))
        for first, last in zip(times, times[wanted - 1 :], strict=False):
            if last - first <= window * SECOND:
                return (first - moment) / SECOND
        return None

    def longest_silence(self, kind: str, since: int, until: int) -> float:
        """Seconds without such an event."""
        times = [since, *(event.at for event in self.events if event.kind == kind and since < event.at < until), until]
        return max(later - earlier for earlier, later in pairwise(times)) / SECOND

    def first(self, wanted: Callable[[Event], bool]) -> int:
        return next(event.at for event in self.events if wanted(event))

    def last(self, wanted: Callable[[Event], bool]) -> int:
        return next(event.at for event in reversed(self.events) if wanted(event))
