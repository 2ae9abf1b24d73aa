"""For what the attempts at a shard have waited, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from pydantic import TypeAdapter

from workflows.events import MAX_WAITS_OF_SHARD, PastWait, ended, merge_waits
from workflows.waits import Wait

_WAITS: Final = TypeAdapter(list[PastWait])


def encode_waits(waits: list[PastWait]) -> bytes:
    return _WAITS.dump_json(waits)


def decode_waits(data: bytes) -> list[PastWait]:
    return _WAITS.validate_json(data)


class ShardWaits:
    """Of one attempt, and of those before it. A wait ends with the next answer, in whichever attempt that is."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.past: list[PastWait] = []
        self.has_changed = False
        """Whether there is something to be stored."""

    def begin(self, wait: Wait) -> None:
        """Note that it is waited for this now; most often that is known already."""
        now = int(self._clock())
        last = self.past[-1] if self.past else None
        if last and last.ended is None and (last.kind, last.subject) == (wait.kind, wait.subject):
            self.past[-1] = last.merged(PastWait.of(wait, now))
            return
        self.end()
        self.add(PastWait.of(wait, now))

    def end(self) -> None:
        if self.past and self.past[-1].ended is None:
            self.past[-1] = ended(self.past[-1], int(self._clock()))
            self.has_changed = True

    def add(self, wait: PastWait) -> None:
        self.past, _ = merge_waits([*self.past, wait], MAX_WAITS_OF_SHARD)
        self.has_changed = True
