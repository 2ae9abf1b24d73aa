"""Configures Python's garbage collector for long-running processes."""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 20_000
"""Number of new objects between two collections; Python's default is 700 to 2,000, depending on the version. Most
objects of a request are freed without a collection."""


def spare_what_has_started() -> None:
    """Collect less often, and never again examine the current objects: modules, models and servers stay.

    Call this only in processes of their own, because it is not undone: tests that did so in a process in which Temporal
    workers were started and stopped crashed in native code.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
