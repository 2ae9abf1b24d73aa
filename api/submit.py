"""``everbatch submit``: a file in, a file out."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

import openai
from openai.types import Batch

from api.client import TERMINAL, BatchClient, endpoint_of

BAR: Final = 30
PLAIN_SECONDS: Final = 5.0
"""Between two lines where no terminal can be redrawn."""

ALL_SUCCEEDED, NOT_COMPLETED, SOME_FAILED = 0, 1, 2


def submit(
    client: BatchClient,
    source: Path,
    output: Path,
    errors: Path | None,
    endpoint: str | None,
    window: str,
    idempotency_key: str | None,
) -> int:
    """Run a batch from file to file; returns the exit status of the command."""
    display = Display(sys.stderr)
    endpoint = endpoint or endpoint_of(source)
    if not endpoint:
        display.say(f"{source}: the first line names no url; say which --endpoint")
        return NOT_COMPLETED
    for path in filter(None, (output, errors)):  # at the end, perhaps a day later, it would be too late to ask
        is_folder = path.parent.is_dir()
        if not is_folder or not os.access(path.parent, os.W_OK | os.X_OK):
            display.say(f"{path}: {path.parent} {'cannot be written to' if is_folder else 'is no folder'}")
            return NOT_COMPLETED
    batch = None

    def away(error: Exception) -> None:
        display.say(f"the server is away ({error.__cause__ or error}); waiting")

    try:
        batch = client.submit(source, endpoint, window, idempotency_key)
        display.say(f"batch {batch.id}")
        for latest in client.follow(batch.id, away):
            batch = latest
            display.show(batch)
        return _finish(client, batch, output, errors, display.say, away)
    except (openai.OpenAIError, OSError) as error:
        problem = str(error)
        if isinstance(error, openai.APIConnectionError):
            problem = f"no connection to {error.request.url} ({error.__cause__ or error})"
        display.say(f"everbatch submit: {problem}{f'; the batch is {batch.id}' if batch else ''}")
        return NOT_COMPLETED
    except KeyboardInterrupt:
        display.say(f"stopped; the batch goes on: {batch.id}" if batch and batch.status not in TERMINAL else "stopped")
        return 130


def _finish(
    client: BatchClient,
    batch: Batch,
    output: Path,
    errors: Path | None,
    say: Callable[[str], None],
    away: Callable[[Exception], None],
) -> int:
    counts = batch.request_counts
    failed = counts.failed if counts else 0
    for problem in (batch.errors and batch.errors.data) or []:
        place = f"line {problem.line}: " if problem.line else ""
        say(f"  {place}{problem.message} ({problem.code})")
    if counts:
        say(f"{batch.status}: {counts.total} requests, {counts.completed} completed, {failed} failed")
    if batch.status != "failed":
        client.download(batch.output_file_id, output, away)
        say(f"results: {output}")
        if errors:
            client.download(batch.error_file_id, errors, away)
            say(f"errors: {errors}")
        elif batch.error_file_id:
            say(f"errors: file {batch.error_file_id} on the server (--errors FILE fetches it)")
    if batch.status != "completed":
        return NOT_COMPLETED
    return SOME_FAILED if failed else ALL_SUCCEEDED


class Display:
    """Progress on a terminal as one line that is redrawn, elsewhere as a line now and then."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._drawn = False
        self._last_status = ""
        self._last_line_at = float("-inf")

    def say(self, text: str) -> None:
        self._write(("\n" if self._drawn else "") + text + "\n")
        self._drawn = False

    def show(self, batch: Batch) -> None:
        line = progress_line(batch)
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


def progress_line(batch: Batch) -> str:
    """The batch as one line of text."""
    counts = batch.request_counts
    total = counts.total if counts else 0
    done = counts.completed + counts.failed if counts else 0
    filled = BAR * done // total if total else 0
    parts = [f"{batch.status:<11} [{'#' * filled}{'.' * (BAR - filled)}] {done}/{total}"]
    if counts and counts.failed:
        parts.append(f"{counts.failed} failed")
    progress: dict[str, object] = (batch.model_extra or {}).get("progress") or {}
    if rate := progress.get("requests_per_second"):
        parts.append(f"{rate}/s")
    if (eta := progress.get("eta_seconds")) is not None:
        parts.append(f"{eta} s left")
    if reason := progress.get("waiting_reason"):
        parts.append(str(reason))
    return ", ".join(parts)
