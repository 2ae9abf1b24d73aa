"""Finds environment variables that look like settings but are not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Final

from activities.settings import Settings

_PREFIX: Final = "EVERBATCH_"


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that are not settings, each with the setting that it resembles, or with an empty text."""
    known = {f"{_PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = sorted(name for name in environment if name.upper().startswith(_PREFIX) and name.upper() not in known)
    return {name: _resembled(name.upper(), known) for name in unknown}


def _resembled(name: str, known: Collection[str]) -> str:
    if name.startswith(_PREFIX + "TEMPORAL_") and not get_close_matches(name, known, 1, 0.9):
        return name.removeprefix(_PREFIX)  # settings of the connection are Temporal's own, TEMPORAL_ADDRESS for example
    return next(iter(get_close_matches(name, known, 1, 0.8)), "")
