"""The garbage collector of the processes, in a process of its own: what it freezes here stays frozen for all tests."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from api.processes.collector import YOUNG_OBJECTS, spare_what_has_started
others = gc.get_threshold()[1:]
spare_what_has_started()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
assert gc.get_threshold() == (YOUNG_OBJECTS, *others), gc.get_threshold()
"""


def test_what_a_process_has_at_its_start_is_spared_by_its_collector() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
