"""Parses completion windows as clients and operators write them."""

from __future__ import annotations

import re
from typing import Final

_WINDOW: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def window_seconds(window: str) -> int:
    """Return the seconds of a completion window such as ``24h``.

    Raises:
        ValueError: the window is not a positive integer followed by ``s``, ``m``, ``h`` or ``d``.
    """
    match = _WINDOW.fullmatch(window)
    if not match:
        raise ValueError(f"{window!r} is not a completion window such as 24h, 30m or 5s")
    return int(match[1]) * _UNIT_SECONDS[match[2]]
