"""Records the waits of the attempts at a shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from pydantic import TypeAdapter

from workflows.events import MAX_WAITS_OF_SHARD, PastWait, ended, merge_waits
from workflows.waits import Wait, WaitKind

_WAITS: Final = TypeAdapter(list[PastWait])


def encode_waits(waits: list[PastWait]) -> bytes:
    """Return the waits as a record of a part or shard object."""
    return b"0 waited %b\n" % _WAITS.dump_json(waits)


def decode_waits(data: bytes) -> list[PastWait]:
    return _WAITS.validate_json(data)


def newest(waits: Iterable[PastWait]) -> list[PastWait]:
    """Merge the waits of a shard from several objects, in any order: the latest version of each wait wins."""
    found: dict[tuple[WaitKind, str, int], PastWait] = {}
    for wait in sorted(waits, key=lambda wait: (wait.times, wait.ended is not None, wait.ended or 0)):
        found[wait.kind, wait.subject, wait.began] = wait
    return merge_waits(found.values(), MAX_WAITS_OF_SHARD)[0]


class ShardWaits:
    """The waits of an attempt and of earlier ones. A wait may continue from one attempt to the next."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.past: list[PastWait] = []
        self.has_changed = False
        """Whether there are changes that are not in the store."""

    def begin(self, wait: Wait) -> None:
        """Record this as the only current wait. In most calls it already is."""
        now = int(self._clock())
        for index, one in enumerate(self.past):
            if one.ended is None and (one.kind, one.subject) == (wait.kind, wait.subject):
                self.past[index] = one.merged(PastWait.of(wait, now))
                return
        self.end()
        self.past, _ = merge_waits([*self.past, PastWait.of(wait, now)], MAX_WAITS_OF_SHARD)
        self.has_changed = True

    def end(self, *kinds: WaitKind) -> None:
        """End the current waits of these kinds, or all current waits if no kinds are given."""
        now = int(self._clock())
        for index, one in enumerate(self.past):
            if one.ended is None and (not kinds or one.kind in kinds):
                self.past[index] = ended(one, now)
                self.has_changed = True

    def take_over(self, waits: Iterable[PastWait]) -> None:
        """Merge in the waits that were recorded under another shard table of the same input."""
        if past := newest([*self.past, *waits]):
            self.has_changed |= past != self.past
            self.past = past
