"""The errors of the failed requests of a batch: codes, counts and line numbers, without messages.

A message may quote a request or a response, so messages never enter Temporal. The API adds them
(:mod:`activities.error_messages`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from pydantic import BaseModel, ConfigDict

MAX_CODES = 20
"""Maximum number of distinct codes in the summary of a batch. Errors with any further code are counted as ``other``."""
MAX_CODES_OF_SHARD = 8
FIRST_LINES = 5
OTHER = "other"
MAX_CODE_LENGTH = 64
_CODE: Final = re.compile(r"[A-Za-z0-9]+(?:[_.:-]+[A-Za-z0-9]+){0,5}")


class ErrorCount(BaseModel):
    """One error code and the requests that failed with it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    count: int
    first_lines: list[int] = []
    """The lowest line numbers in the input that have this code, in ascending order."""
    shard: int | None = None
    """Index of the shard that contains the first of these lines; ``None`` if the batch has no shards."""

    def merged(self, other: ErrorCount) -> ErrorCount:
        lines = sorted({*self.first_lines, *other.first_lines})[:FIRST_LINES]
        first = self if lines[:1] == self.first_lines[:1] else other
        return ErrorCount(code=self.code, count=self.count + other.count, first_lines=lines, shard=first.shard)


def is_code(text: str) -> bool:
    """Return whether an engine's ``text`` may enter Temporal as an error code.

    A code has at most six words joined by punctuation, so that no sentence of a response passes.
    """
    return len(text) <= MAX_CODE_LENGTH and bool(_CODE.fullmatch(text))


def summed(counts: Iterable[ErrorCount], maximum: int = MAX_CODES) -> list[ErrorCount]:
    """Return one entry for each code, the most frequent first, with codes beyond ``maximum`` combined into ``other``.

    Errors once counted as ``other`` cannot be separated again. If there are more than ``maximum`` codes, the sums of a
    running batch are therefore not exact.
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
