"""Python's garbage collector, as suits a process that runs for long."""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 20_000
"""New objects between two searches for garbage; by default 700 to 2,000, by version. Most of what a request leaves
behind needs no search at all."""


def spare_what_has_started() -> None:
    """Look for garbage less often, and never again in what is there now: modules, models and servers stay.

    For processes of their own only. It is not undone, and tests that did it beside Temporal workers that come and go in
    one process crashed in native code.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
