"""The record of a request that has no answer yet."""

from __future__ import annotations

from typing import NamedTuple


class Tries(NamedTuple):
    """How often a request was tried. The numbers only grow, so the greater of two records is the later one."""

    failed: int = 0
    """Number of counted failures."""
    alone: int = 0
    """Number of sends as the only suspect in flight in the process, after workers had been lost."""
    ended: int = 0
    """Number of those sends that ended, with whatever outcome. During the others, the process went down."""

    @property
    def lost(self) -> int:
        """Number of worker processes that were lost while the request was the only suspect in flight."""
        return self.alone - self.ended

    def merged(self, other: Tries) -> Tries:
        return Tries(*map(max, self, other))
