"""Options of a submission, the terminal batch statuses, and default intervals and timeouts in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypedDict

TERMINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
PATIENCE_SECONDS: Final = 600.0
FIRST_POLL_SECONDS: Final = 0.2
MAX_POLL_SECONDS: Final = 15.0
ANSWER_SECONDS: Final = 60.0
"""Timeout of a call that transfers no file. With the SDK's default, a dead connection could hang for ten minutes."""


class SubmitOptions(TypedDict, total=False):
    """Options of a batch that is submitted."""

    model: str | None
    """The model for prompts, and for bodies that name none."""
    metadata: Mapping[str, str] | None
    """Up to 16 short key-value pairs to attach to the batch."""
    idempotency_key: str | None
    """On Everbatch, submitting the same requests with the same key again returns the same batch."""
