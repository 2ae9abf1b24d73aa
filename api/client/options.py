"""Statuses and default times of the clients."""

from __future__ import annotations

from typing import Final

TERMINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
"""The statuses that a batch never leaves."""
PATIENCE_SECONDS: Final = 600.0
FIRST_POLL_SECONDS: Final = 0.2
MAX_POLL_SECONDS: Final = 15.0
ANSWER_SECONDS: Final = 60.0
"""Timeout of a call that transfers no file. The SDK's own timeout would let a dead connection hang for ten minutes."""
