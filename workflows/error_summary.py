"""Which errors the failed requests of a batch have: codes, counts and line numbers, and no messages.

Messages may quote a request or a response, and never enter Temporal. So the API adds them
(:mod:`activities.error_messages`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from pydantic import BaseModel, ConfigDict

MAX_CODES = 20
"""Different ones that are named; what is left is counted as ``other``."""
MAX_CODES_OF_SHARD = 8
FIRST_LINES = 5
OTHER = "other"
MAX_CODE_LENGTH = 64
_CODE: Final = re.compile(r"[A-Za-z0-9]+(?:[_.:-]+[A-Za-z0-9]+){0,5}")


class ErrorCount(BaseModel):
    """One code of errors."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    count: int
    first_lines: list[int] = []
    """Of the input, the smallest numbers."""
    shard: int | None = None
    """That has the first of these lines, where there are shards."""

    def merged(self, other: ErrorCount) -> ErrorCount:
        lines = sorted({*self.first_lines, *other.first_lines})[:FIRST_LINES]
        first = self if lines[:1] == self.first_lines[:1] else other
        return ErrorCount(code=self.code, count=self.count + other.count, first_lines=lines, shard=first.shard)


def is_code(text: str) -> bool:
    """Whether an engine's word may name an error in Temporal: six words at most, and no sentence of a response."""
    return len(text) <= MAX_CODE_LENGTH and bool(_CODE.fullmatch(text))


def summed(counts: Iterable[ErrorCount], maximum: int = MAX_CODES) -> list[ErrorCount]:
    """One entry for each code, the most frequent first, and the rest as ``other``.

    A code that was once counted as ``other`` stays so: where there are more than ``maximum``, the sums of a batch that
    runs are not exact.
    """
    found: dict[str, ErrorCount] = {}
    for count in counts:
        before = found.get(count.code)
        found[count.code] = before.merged(count) if before else count
    rest = found.pop(OTHER, None)
    ordered = sorted(found.values(), key=lambda one: (-one.count, one.code))
    for count in ordered[maximum:]:
        one = count.model_copy(update={"code": OTHER})
        rest = rest.merged(one) if rest else one
    return ordered[:maximum] + ([rest] if rest else [])
