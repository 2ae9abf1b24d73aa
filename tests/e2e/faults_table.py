"""What the fault matrix found, as a table for people: ``docs/faults.md``."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

PATH: Final = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
LOCK: Final = Path(tempfile.gettempdir()) / "everbatch-faults.lock"
_CACHE: Final = "everbatch/faults"
GROUPS: Final = (
    "Worker",
    "API",
    "Temporal",
    "Everything",
    "Store",
    "Engine",
    "Whose fault",
    "Cancel",
    "Expiry",
    "Create",
    "Nothing",
)
ELSEWHERE: Final = (
    ("cancel before validation, and before any worker is up", "tests/integration/test_status.py, tests/histories"),
    ("cancel while validating, by the API and from Temporal", "tests/integration/test_batch_ends.py"),
    ("cancel too late for validation", "tests/integration/test_batch_ends.py"),
    ("cancel during finalizing: every answer is kept", "tests/integration/test_batch_ends.py"),
    ("cancel after the end: 409", "tests/integration/test_batch_ends.py"),
    ("cancel while the engine is down", "tests/integration/test_batch_ends.py"),
    ("terminate from the Temporal UI", "tests/integration/test_batch_ends.py"),
    ("expiry before a worker came", "tests/integration/test_batch_ends.py"),
    (
        "reset of the workflow to each event, ended and running, with the same and with other routes, also on S3",
        "tests/integration/test_resets.py",
    ),
    (
        "several requests that hang from the start of a small batch, while the others are answered",
        "tests/integration/test_batch_faults.py",
    ),
    ("pause and resume, cancel and expiry while paused", "tests/integration/test_pause.py"),
    ("`kill -9` of `everbatch dev` with all in it", "tests/e2e/test_dev.py"),
)


@dataclass(frozen=True)
class Row:
    group: str
    fault: str
    requests: int
    lost: int
    duplicates: int
    allowed: int
    back: float | None
    took: float
    note: str = ""


class Cache(Protocol):
    """Pytest's, which outlives a session."""

    def get(self, key: str, default: Any) -> Any: ...
    def set(self, key: str, value: object) -> None: ...


class Matrix:
    """The rows of this session's tests, and of earlier sessions for those that did not run in this one."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._test = ""

    def begin(self, test: str) -> None:
        """A test begins: what it found before counts no more."""
        self._test = test
        self._save([])

    def add(self, row: Row) -> None:
        self._save([*self._found().get(self._test, []), dataclasses.asdict(row)])

    def rows(self) -> list[Row]:
        rows = [Row(**row) for found in self._found().values() for row in found]
        return sorted(rows, key=lambda row: (GROUPS.index(row.group), row.fault, row.requests))

    def _found(self) -> dict[str, list[dict[str, Any]]]:
        return self._cache.get(_CACHE, {})  # read anew each time: another session may be at work

    def _save(self, rows: list[dict[str, Any]]) -> None:
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._cache.set(_CACHE, {**self._found(), self._test: rows})

    def write(self, heartbeat_timeout: float, commit_interval: float) -> None:
        PATH.write_text(_page(self.rows(), heartbeat_timeout, commit_interval))


def _page(rows: list[Row], heartbeat_timeout: float, commit_interval: float) -> str:
    table = [
        "| | Fault, mid-batch | Requests | Lines lost | Sent twice | May be | Next answer after | Batch took |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    group = ""
    for row in rows:
        back = "" if row.back is None else f"{row.back:.1f} s"
        note = f" ({row.note})" if row.note else ""
        heading = "" if row.group == group else f"**{row.group}**"
        group = row.group
        table.append(
            f"| {heading} | {row.fault}{note} | {row.requests:,} | {row.lost} | {row.duplicates} | {row.allowed} "
            f"| {back} | {row.took:.1f} s |"
        )
    elsewhere = [f"| {fault} | {where} |" for fault, where in ELSEWHERE]
    return f"""\
# Faults

Written by the tests of the fault matrix from what they found (`make faults`). Each row runs API, worker, Temporal and a
fake inference engine as processes, does the harm in the middle of a batch, and holds the result files against those of
an undisturbed run, line by line. What was sent, and what was sent again, is told by the engine's own log. All along a
client asks for the batch and for the list of batches: counts never go back (but when the API itself is started anew
while Temporal or all workers are down), and there is no 5xx but 503 with `Retry-After` while the store is down. Batches
of 50 requests are one activity per request, larger ones are groups.

- *Sent twice*: requests that the engine got once more although it had answered, or was about to.
- *May be*: those in flight at the fault and those answered in the 100 ms before it, whose answers may not have been
  committed. (The tests grant 100 ms more, for the commit itself.)
- *Next answer after*: seconds from the moment that the fault is lifted (a process is started again, the engine answers
  again) to the next answer of a request that had none. The start of a Python process takes a second or two of that.
- *Batch took*: from its creation to its end, the fault included; compare the last rows, of undisturbed runs.

{os.cpu_count()} cores, heartbeat timeout {heartbeat_timeout:g} s, commit interval {commit_interval:g} s.

{chr(10).join(table)}

Proven by other tests, with the engine or Temporal in other roles:

| Case | Where |
|---|---|
{chr(10).join(elsewhere)}
"""
