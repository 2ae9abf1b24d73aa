"""What is remembered of a request that has no answer yet."""

from __future__ import annotations

from typing import NamedTuple


class Tries(NamedTuple):
    """What was tried to get an answer to a request. Numbers only grow, so the greater of two notes is the later."""

    failed: int = 0
    """Failures that count."""
    alone: int = 0
    """Sends after its worker was lost repeatedly, with no other suspect in flight in the process …"""
    ended: int = 0
    """… and those of them that came to an end, whichever. In the others the process went down."""

    @property
    def lost(self) -> int:
        """Worker processes that were lost while it was the only suspect in flight."""
        return self.alone - self.ended

    def merged(self, other: Tries) -> Tries:
        return Tries(*map(max, self, other))
