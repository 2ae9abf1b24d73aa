"""For what the attempts at a shard have waited, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from pydantic import TypeAdapter

from workflows.events import MAX_WAITS_OF_SHARD, PastWait, ended, merge_waits
from workflows.waits import Wait, WaitKind

_WAITS: Final = TypeAdapter(list[PastWait])


def encode_waits(waits: list[PastWait]) -> bytes:
    """As a record of an object of a shard."""
    return b"0 waited %b\n" % _WAITS.dump_json(waits)


def decode_waits(data: bytes) -> list[PastWait]:
    return _WAITS.validate_json(data)


def newest(waits: Iterable[PastWait]) -> list[PastWait]:
    """What several objects say of the waits of a shard, in whatever order: each as it was told last."""
    found: dict[tuple[WaitKind, str, int], PastWait] = {}
    for wait in sorted(waits, key=lambda wait: (wait.times, wait.ended is not None, wait.ended or 0)):
        found[wait.kind, wait.subject, wait.began] = wait
    return merge_waits(found.values(), MAX_WAITS_OF_SHARD)[0]


class ShardWaits:
    """Of one attempt, and of those before it. A wait may go on from one attempt to the next."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.past: list[PastWait] = []
        self.has_changed = False
        """Whether there is something to be stored."""

    def begin(self, wait: Wait) -> None:
        """Note that it is waited for this now and for nothing else; most often that is known already."""
        now = int(self._clock())
        for index, one in enumerate(self.past):
            if one.ended is None and (one.kind, one.subject) == (wait.kind, wait.subject):
                self.past[index] = one.merged(PastWait.of(wait, now))
                return
        self.end()
        self.past, _ = merge_waits([*self.past, PastWait.of(wait, now)], MAX_WAITS_OF_SHARD)
        self.has_changed = True

    def end(self, *kinds: WaitKind) -> None:
        """Args: ``kinds`` are of the waits that have ended; without them all have."""
        now = int(self._clock())
        for index, one in enumerate(self.past):
            if one.ended is None and (not kinds or one.kind in kinds):
                self.past[index] = ended(one, now)
                self.has_changed = True

    def take_over(self, waits: Iterable[PastWait]) -> None:
        """Those of another cut of the input."""
        if past := newest([*self.past, *waits]):
            self.has_changed |= past != self.past
            self.past = past
