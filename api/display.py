"""What the client commands show of batches: progress on a terminal, one batch in words, several as a table."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TextIO

from openai.types import Batch

from api.client_errors import problems

BAR: Final = 30
PLAIN_SECONDS: Final = 5.0
"""Between two lines where no terminal can be redrawn."""
REASON_CHARACTERS: Final = 60


class Display:
    """Progress on a terminal as one line that is redrawn, elsewhere as a line now and then."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._drawn = False
        self._last_status = ""
        self._last_line_at = float("-inf")

    def say(self, text: str) -> None:
        self.end_line()
        self._write(printable(text) + "\n")

    def end_line(self) -> None:
        """Leave what is drawn as it is, for other output to come."""
        if self._drawn:
            self._write("\n")
        self._drawn = False

    def show(self, batch: Batch) -> None:
        line = printable(progress_line(batch))
        if self._live:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be redrawn
            self._write(f"\r\x1b[K{line[:width]}")
            self._drawn = True
        elif batch.status != self._last_status or time.monotonic() - self._last_line_at >= PLAIN_SECONDS:
            self._write(line + "\n")
            self._last_line_at = time.monotonic()
        self._last_status = batch.status

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def printable(text: str) -> str:
    """The text without what would move a terminal's cursor: some of it comes from a server, or its engine."""
    return "".join(character if character.isprintable() else " " for character in text)


def progress_line(batch: Batch) -> str:
    """The batch as one line of text."""
    total, completed, failed = counts_of(batch)
    done = completed + failed
    filled = min(BAR * done // total, BAR) if total else 0
    parts = [f"{batch.status:<11} [{'#' * filled}{'.' * (BAR - filled)}] {done}/{total}"]
    if failed:
        parts.append(f"{failed} failed")
    progress = progress_of(batch)
    if rate := progress.get("requests_per_second"):
        parts.append(f"{rate}/s")
    if (eta := progress.get("eta_seconds")) is not None:
        parts.append(f"{eta} s left")
    if reason := progress.get("waiting_reason"):
        parts.append(str(reason))
    return ", ".join(parts)


def counts_of(batch: Batch) -> tuple[int, int, int]:
    """Total, completed, failed; zeros where a server does not count yet."""
    counts = batch.request_counts
    return (counts.total or 0, counts.completed or 0, counts.failed or 0) if counts else (0, 0, 0)


def progress_of(batch: Batch) -> dict[str, Any]:
    """What Everbatch says beside OpenAI's fields."""
    return (batch.model_extra or {}).get("progress") or {}


def details(batch: Batch) -> list[str]:
    """All that there is to say of a batch, in lines."""
    total, completed, failed = counts_of(batch)
    progress = progress_of(batch)
    next_attempt = progress.get("next_attempt_at")
    waiting = str(progress.get("waiting_reason") or "")
    rate, eta, in_flight = (progress.get(name) for name in ("requests_per_second", "eta_seconds", "in_flight"))
    getting_on = [
        f"{rate}/s" if rate else "",
        f"{eta} s left" if eta is not None else "",
        f"{in_flight} in flight" if in_flight else "",
    ]
    ended_at = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    rows = [
        ("batch", batch.id),
        ("status", batch.status),
        ("requests", f"{total}, {completed} completed, {failed} failed"),
        ("progress", ", ".join(filter(None, getting_on))),
        ("waiting for", waiting + (f" (next try {clock(next_attempt)})" if waiting and next_attempt else "")),
        ("endpoint", batch.endpoint),
        ("model", batch.model),
        ("created", clock(batch.created_at)),
        ("ended" if ended_at else "expires", clock(ended_at or batch.expires_at)),
        ("results", batch.output_file_id),
        ("errors", batch.error_file_id),
        *(("problem", problem) for problem in problems(batch)),
    ]
    return [printable(f"{name:<12}{value}") for name, value in rows if value]


def table(batches: Sequence[Batch]) -> list[str]:
    """A line for each batch, under a line of headings."""
    columns: list[tuple[str, Callable[[Batch], str]]] = [
        ("ID", lambda batch: batch.id),
        ("STATUS", lambda batch: batch.status),
        ("DONE", lambda batch: "{1}/{0}".format(*counts_of(batch))),
        ("FAILED", lambda batch: str(counts_of(batch)[2])),
        ("CREATED", lambda batch: clock(batch.created_at)),
        ("WAITING FOR", lambda batch: _shortened(str(progress_of(batch).get("waiting_reason") or ""))),
    ]
    rows = [[heading for heading, _ in columns]]
    rows += [[printable(cell(batch)) for _, cell in columns] for batch in batches]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shortened(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 1] + "…"


def clock(seconds: object) -> str:
    """A time of the API for a person, in local time; empty where there is none."""
    if not isinstance(seconds, int | float):
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
