"""The terminal batch statuses, and the default intervals and timeouts of the clients, in seconds."""

from __future__ import annotations

from typing import Final

TERMINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
PATIENCE_SECONDS: Final = 600.0
FIRST_POLL_SECONDS: Final = 0.2
MAX_POLL_SECONDS: Final = 15.0
ANSWER_SECONDS: Final = 60.0
"""Timeout of a call that transfers no file. With the SDK's default, a dead connection could hang for ten minutes."""
