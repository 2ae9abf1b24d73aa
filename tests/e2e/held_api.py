"""``everbatch serve``, held between the start of a workflow and the writing of its record.

Run as ``python -m tests.e2e.held_api serve --port 0``. The file that ``FAULTS_HELD`` names appears when a create has
come to that place, where a test can then kill this process.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from activities.records.catalog import Catalog
from api.cli.main import main
from workflows.types import BatchSpec


def _held(self: Catalog, spec: BatchSpec) -> None:
    Path(os.environ["FAULTS_HELD"]).touch()
    threading.Event().wait()


if __name__ == "__main__":
    Catalog.create_batch = _held
    main()
