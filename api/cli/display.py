"""Formats batches for the client commands: progress on a terminal, details of one batch, a table of several."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TextIO

from openai.types import Batch

from api.client.errors import failures, problems

BAR: Final = 30
NARROW: Final = 60
"""Number of terminal columns below which values are shown one below the other instead of side by side."""
PLAIN_SECONDS: Final = 5.0
"""Seconds between two lines of progress if the output is not a terminal."""


_DIGITS: Final = re.compile(r"[0-9]+")


class Display:
    """Shows progress as one line that is redrawn on a terminal, or else as a new line at intervals."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._drawn = False
        self._last_status = ""
        self._last_reason = ""
        self._last_line_at = float("-inf")

    def say(self, text: str) -> None:
        self.end_line()
        self._write(printable(text) + "\n")

    def end_line(self) -> None:
        """Keep the drawn line, so that other output can follow."""
        if self._drawn:
            self._write("\n")
        self._drawn = False

    def show(self, batch: Batch) -> None:
        line = printable(progress_line(batch, BAR, with_reason=not self._live))
        if self._live:
            self._say_reason(printable(waiting_reason(batch)))
            width = _columns() - 1  # a line that wraps could not be redrawn
            if width < NARROW:
                line = printable(progress_line(batch, BAR // 3, with_reason=False))
            self._write(f"\r\x1b[K{line[:width]}")
            self._drawn = True
        elif batch.status != self._last_status or time.monotonic() - self._last_line_at >= PLAIN_SECONDS:
            self._write(line + "\n")
            self._last_line_at = time.monotonic()
        self._last_status = batch.status

    def _say_reason(self, reason: str) -> None:
        """Write the reason for a wait when it changes in more than its numbers."""
        what = _DIGITS.sub("", reason)
        if reason and what != self._last_reason:
            self._write(("\r\x1b[K" if self._drawn else "") + "\n".join(_wrapped(reason, "", "  ")) + "\n")
            self._last_reason = what

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def printable(text: str) -> str:
    """Return the text without control characters, as parts of it come from a server or its engine."""
    return "".join(character if character.isprintable() else " " for character in text)


def progress_line(batch: Batch, bar: int, *, with_reason: bool) -> str:
    """Return the progress of a batch as one line of text.

    Args: ``bar`` is the width of the bar; ``with_reason`` is whether the reason for a wait is included.
    """
    total, completed, failed = counts_of(batch)
    done = completed + failed
    filled = min(bar * done // total, bar) if total else 0
    parts = [f"{batch.status:<11} [{'#' * filled}{'.' * (bar - filled)}] {done}/{total}"]
    if failed:
        parts.append(f"{failed} failed")
    progress = progress_of(batch)
    if rate := progress.get("requests_per_second"):
        parts.append(f"{rate}/s")
    if (eta := progress.get("eta_seconds")) is not None:
        parts.append(f"{eta} s left")
    if reason := waiting_reason(batch):
        parts.append(reason if with_reason else "waiting")
    return ", ".join(parts)


def waiting_reason(batch: Batch) -> str:
    """Return what a batch waits for as a sentence, or "" if it does not wait."""
    return str(progress_of(batch).get("waiting_reason") or "")


def _why(batch: Batch) -> str:
    """Return in a line why a batch waits or has failed, or what its requests failed with, or ""."""
    found = [*problems(batch), *failures(batch)]
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return waiting_reason(batch) or "".join(found[:1]) + others


def counts_of(batch: Batch) -> tuple[int, int, int]:
    """Return total, completed and failed requests; zeros if the server has no counts yet."""
    counts = batch.request_counts
    return (counts.total or 0, counts.completed or 0, counts.failed or 0) if counts else (0, 0, 0)


def tokens_used(batch: Batch) -> str:
    """Return the tokens that a batch has used as text, or "" if unknown."""
    usage = batch.usage
    if not usage or not usage.input_tokens:
        return ""
    return f"{usage.input_tokens} in ({usage.input_tokens_details.cached_tokens} cached), {usage.output_tokens} out"


def outcome(batch: Batch) -> str:
    """Return the outcome of the requests as one sentence."""
    total, completed, failed = counts_of(batch)
    if not total or failed < total:
        return f"{total} request{'' if total == 1 else 's'}, {completed} completed, {failed} failed"
    reasons = failures(batch)
    what = "the only request" if total == 1 else f"all {total} requests"
    return f"{what} failed" + (f": {reasons[0]}" if len(reasons) == 1 else "")


def other_failures(batch: Batch) -> list[str]:
    """Return the failures that :func:`outcome` does not include."""
    total, _, failed = counts_of(batch)
    reasons = failures(batch)
    return [] if failed == total and len(reasons) == 1 else reasons


def progress_of(batch: Batch) -> dict[str, Any]:
    """Return Everbatch's ``progress`` extension of the batch object."""
    return (batch.model_extra or {}).get("progress") or {}


def details(batch: Batch) -> list[str]:
    """Return all details of a batch as lines."""
    progress = progress_of(batch)
    rate, eta, in_flight = (progress.get(name) for name in ("requests_per_second", "eta_seconds", "in_flight"))
    limit = progress.get("in_flight_limit")
    getting_on = [
        f"{rate}/s" if rate else "",
        f"{eta} s left" if eta is not None else "",
        f"{in_flight} in flight" + (f" (limit {limit})" if limit else "") if in_flight else "",
    ]
    ended_at = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    rows = [
        ("batch", batch.id),
        ("status", batch.status),
        ("requests", outcome(batch)),
        ("progress", ", ".join(filter(None, getting_on))),
        *(("shared", _shared(upstream)) for upstream in progress.get("shared_upstreams") or ()),
        ("waiting", waiting_reason(batch).removeprefix("Waiting: ")),
        ("tokens", tokens_used(batch)),
        ("endpoint", batch.endpoint),
        ("model", batch.model),
        ("created", clock(batch.created_at)),
        ("ended" if ended_at else "expires", clock(ended_at or batch.expires_at)),
        ("results", batch.output_file_id),
        ("errors", batch.error_file_id),
        ("retry of", (batch.metadata or {}).get("retry_of")),
        ("retried by", (batch.model_extra or {}).get("retried_by")),
        *(("problem", problem) for problem in problems(batch)),
        *(("failed", failure) for failure in other_failures(batch)),
    ]
    shown = [(name, printable(str(value))) for name, value in rows if value]
    if _columns() < NARROW:
        return [line for name, value in shown for line in _wrapped(value, f"{name}: ", "  ")]
    return [line for name, value in shown for line in _wrapped(value, f"{name:<12}", " " * 12)]


def _shared(upstream: dict[str, Any]) -> str:
    """Describe the settings of an upstream that protect its other clients."""
    headroom, body = upstream.get("interactive_headroom"), upstream.get("body")
    parts = [
        f"leaves {100 * headroom:g} % of its capacity to other clients" if headroom else "",
        f"is sent {json.dumps(body)} where a request does not set it" if body else "",
    ]
    return f'upstream "{upstream.get("name")}" {" and ".join(filter(None, parts))}'


def events_table(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the events of a batch as lines."""
    rows = [(clock(event["created_at"]), printable(event["message"])) for event in events]
    if _columns() < NARROW:
        return [line for at, text in rows for line in (at, *_wrapped(text, "  ", "  "))]
    return [line for at, text in rows for line in _wrapped(text, f"{at}  ", " " * 21)]


def table(batches: Sequence[Batch]) -> list[str]:
    """Return a line of headings and a line for each batch."""
    columns: list[tuple[str, Callable[[Batch], str]]] = [
        ("ID", lambda batch: batch.id),
        ("STATUS", lambda batch: batch.status),
        ("DONE", lambda batch: "{1}/{0}".format(*counts_of(batch))),
        ("FAILED", lambda batch: str(counts_of(batch)[2])),
        ("CREATED", lambda batch: clock(batch.created_at)),
        ("NAME", lambda batch: (batch.metadata or {}).get("name", "")),
        ("MODEL", lambda batch: batch.model or ""),
        ("ENDPOINT", lambda batch: batch.endpoint),
    ]
    if _columns() < NARROW:
        return [line for batch in batches for line in _narrow(batch, columns)]
    rows = [[heading for heading, _ in columns]]
    rows += [[printable(cell(batch)) for _, cell in columns] for batch in batches]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons = [_wrapped(printable(_why(batch)), "  ", "    ") for batch in batches]
    return lines[:1] + [line for row, reason in zip(lines[1:], reasons, strict=True) for line in (row, *reason)]


def _narrow(batch: Batch, columns: Sequence[tuple[str, Callable[[Batch], str]]]) -> list[str]:
    """Return the cells of a batch as text below its id, for narrow terminals."""
    cells = [f"{heading.lower()} {value}" for heading, cell in columns[1:] if (value := printable(cell(batch)))]
    return [
        batch.id,
        *_wrapped(", ".join(cells), "  ", "  "),
        *_wrapped(printable(_why(batch)), "  ", "    "),
    ]


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """Wrap text to the width of the terminal. Longer words are not broken, so that they can be copied.

    Args: ``first`` is the prefix of the first line, ``others`` that of all other lines.
    """
    return textwrap.wrap(
        text,
        _columns(),
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def clock(seconds: object) -> str:
    """Return a Unix time of the API as text in local time, or "" for no time."""
    if not isinstance(seconds, int | float):
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
