"""The commands ``everbatch list``, ``status``, ``cancel``, ``results`` and ``retry``, and code shared with ``submit``.

Each command returns its exit status.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import click
import httpx2
from openai import APIConnectionError, APIError, APIStatusError, OpenAI, OpenAIError
from openai.types import Batch

from api.cli.display import Display, counts_of, details, events_table, other_failures, outcome, table
from api.client import TERMINAL, BatchClient
from api.client.errors import NotABatchServerError, message_of, problems
from api.client.options import PATIENCE_SECONDS

DEFAULT_URL: Final = "http://127.0.0.1:8000/v1"
FIRST_PATIENCE_SECONDS: Final = 2.0
"""Patience with a server that has not responded yet, in seconds. It is short because the base URL may be wrong."""
MAX_POLL_SECONDS: Final = 5.0
STDIN = STDOUT = Path("-")

ALL_SUCCEEDED, NOT_COMPLETED, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 64, 130


class BadInputError(ValueError):
    """The input of a command cannot be used; the message is one line for the user."""


class Session:
    """One run of a command against one server."""

    def __init__(self, openai: OpenAI, display: Display) -> None:
        self._openai = openai
        self.display = display
        self.waiting_for: Batch | None = None
        """The batch that the command is working on; it continues to run if the command is interrupted."""

    @property
    def client(self) -> BatchClient:
        """A client for a server that may not exist at this base URL; it gives up after a short time."""
        return BatchClient(self._openai, patience=FIRST_PATIENCE_SECONDS)

    @property
    def patient(self) -> BatchClient:
        """A client for a server that has responded before; it waits for the server when that becomes unavailable."""
        return BatchClient(
            self._openai, patience=PATIENCE_SECONDS, max_poll=MAX_POLL_SECONDS, on_retry=self._show_retry
        )

    def _show_retry(self, error: APIError) -> None:
        self.display.say(f"the server is unavailable ({_reason(error)}); waiting")

    def watch(self, batch: Batch) -> Batch:
        """Show a batch until it has ended, and return it."""
        self.waiting_for = batch
        for latest in self.patient.follow(batch.id):
            self.waiting_for = latest
            self.display.show(latest)
        self.display.end_line()
        return self.waiting_for


def run(name: str, base_url: str | None, api_key: str | None, command: Callable[[Session], int]) -> int:
    """Run a command and return its exit status. Any error is reported in one line on stderr.

    Args:
        name: the name of the command.
        base_url: the server's base URL. Default: ``OPENAI_BASE_URL``, or the server that ``everbatch dev`` starts.
        api_key: the API key. Default: ``OPENAI_API_KEY``, or no key.
        command: the function that runs the command.
    """
    display = Display(sys.stderr)
    session = None
    try:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        if "://" not in url:
            raise ValueError(f"the base URL {url!r} has no scheme; did you mean 'http://{url}'?")
        with OpenAI(base_url=url, api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none") as openai:
            session = Session(openai, display)
            return command(session)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has finished; click then exits without a message
        raise
    except (OpenAIError, OSError, ValueError, LookupError, httpx2.InvalidURL) as error:
        waiting = session.waiting_for if session else None
        display.say(f"everbatch {name}: {_reason(error)}{f'; the batch is {waiting.id}' if waiting else ''}")
        return USAGE if isinstance(error, BadInputError) else NOT_COMPLETED
    except KeyboardInterrupt:
        waiting = session.waiting_for if session else None
        runs = waiting and waiting.status not in TERMINAL
        text = f"stopped; the batch continues to run: everbatch status {waiting.id}" if waiting and runs else "stopped"
        display.say(text)
        return INTERRUPTED


def _reason(error: Exception) -> str:
    if isinstance(error, APIConnectionError):
        url = error.request.url.copy_with(query=None)
        return f"no connection to {url} ({error.__cause__ or error}); --base-url sets the server"
    if isinstance(error, APIStatusError) and error.status_code in (404, 405) and not isinstance(error.body, dict):
        return f"{NotABatchServerError()} (HTTP {error.status_code})"
    if isinstance(error, APIStatusError):
        return f"{message_of(error):.500} (HTTP {error.status_code})"
    return str(error)


def list_batches(session: Session, limit: int, status: str | None, as_json: bool) -> int:
    """Print the newest batches, at most ``limit``."""
    batches = session.client.batches(min(limit, 100) if status is None else 100)
    wanted = (batch for batch in batches if status is None or batch.status == status)
    found = list(islice(wanted, limit))
    for line in [batch.to_json(indent=None) for batch in found] if as_json else table(found):
        click.echo(line)
    return ALL_SUCCEEDED


def show_status(session: Session, batch_id: str, watch: bool, as_json: bool) -> int:
    """Print one batch, now or when it has ended."""
    batch = session.client.retrieve(batch_id)
    if watch:
        batch = session.watch(batch)
    _print(batch, as_json)
    return exit_status(batch) if watch else ALL_SUCCEEDED


def events(session: Session, batch_id: str, as_json: bool) -> int:
    """Print the events and waits of a batch."""
    found = session.client.events(batch_id)
    for line in map(json.dumps, found) if as_json else events_table(found):
        click.echo(line)
    return ALL_SUCCEEDED


def set_paused(session: Session, batch_id: str, paused: bool, as_json: bool) -> int:
    """Pause or resume a batch."""
    _print(session.client.set_paused(batch_id, paused), as_json)
    return ALL_SUCCEEDED


def cancel(session: Session, batch_id: str, wait: bool, as_json: bool) -> int:
    """Request that a batch stops, and wait until it has ended if ``wait`` is set."""
    batch = session.client.cancel(batch_id)
    if wait:
        batch = session.watch(batch)
    _print(batch, as_json)
    return ALL_SUCCEEDED if batch.status in ("cancelling", "cancelled") else NOT_COMPLETED


def results(session: Session, batch_id: str, output: Path, errors: Path | None) -> int:
    """Download the files of a batch that has ended."""
    check_targets(output, errors)
    batch = session.client.retrieve(batch_id)
    if batch.status not in TERMINAL:
        raise ValueError(
            f"{batch.id} is {batch.status}; wait for it: everbatch status {batch.id} --watch, or download its "
            "results so far: --follow"
        )
    return take(session, batch, output, errors)


def follow(session: Session, batch_id: str, output: Path, _: Path | None) -> int:
    """Write the results of a batch as they are committed, until the batch has ended."""
    check_targets(output, None)
    batch = session.waiting_for = session.client.retrieve(batch_id)
    with contextlib.ExitStack() as stack:
        target = sys.stdout.buffer if output == STDOUT else stack.enter_context(output.open("wb"))
        for page in session.patient.result_pages(batch.id):
            target.write(page.content)
            target.flush()
    batch = session.patient.retrieve(batch.id)
    say_outcome(session, batch)
    return exit_status(batch)


class Retry(NamedTuple):
    batch_id: str
    codes: list[str] | None
    output: Path | None
    errors: Path | None
    wait: bool


def retry(session: Session, job: Retry) -> int:
    """Send the failed requests of a batch again, as a new batch."""
    check_targets(job.output, job.errors)
    batch = session.waiting_for = session.client.retry(job.batch_id, job.codes)
    session.display.say(f"batch {batch.id}")
    if not (job.wait or job.output or job.errors):
        click.echo(batch.id)
        return ALL_SUCCEEDED
    return take(session, session.watch(batch), job.output, job.errors)


def _print(batch: Batch, as_json: bool) -> None:
    for line in [batch.to_json(indent=None)] if as_json else details(batch):
        click.echo(line)


def check_targets(output: Path | None, errors: Path | None, sources: Sequence[Path] = ()) -> None:
    """Check the output paths before the batch runs, because an error when it ends may come too late to correct them.

    Raises:
        BadInputError: a file cannot be written, or two paths are the same file.
    """
    used = [(source.resolve(), "input") for source in sources]
    for path, role in ((output, "output"), (errors, "errors")):
        if path is None or (path == STDOUT and role == "output") or (path.exists() and not path.is_file()):
            continue
        if not path.parent.is_dir():
            raise BadInputError(f"{path}: {path.parent} is not a directory")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise BadInputError(f"{path}: {path.parent} cannot be written to")
        for other, other_role in used:
            if path.resolve() == other:
                raise BadInputError(f"{path} is used as both {other_role} and {role}")
        used.append((path.resolve(), role))


def say_outcome(session: Session, batch: Batch) -> None:
    """Print the outcome of a batch, and its errors, on stderr."""
    session.waiting_for = batch
    for problem in (*problems(batch), *other_failures(batch)):
        session.display.say(f"  {problem}")
    session.display.say(f"{batch.status}: {outcome(batch)}")


def take(session: Session, batch: Batch, output: Path | None, errors: Path | None) -> int:
    """Download the files of a batch that has ended, print its outcome, and return the exit status."""
    say_outcome(session, batch)
    say, client = session.display.say, session.patient
    if batch.status != "failed":
        if output == STDOUT:
            _copy_to_stdout(client, batch.output_file_id)
        elif output:
            client.download(batch.output_file_id, output)
            say(f"results: {output}")
        elif batch.output_file_id:
            say(f"results: file {batch.output_file_id} on the server (everbatch results {batch.id} -o FILE)")
        if errors:
            client.download(batch.error_file_id, errors)
            say(f"errors: {errors}")
        elif batch.error_file_id:
            say(f"errors: file {batch.error_file_id} on the server (--errors FILE downloads it)")
    return exit_status(batch)


def _copy_to_stdout(client: BatchClient, file_id: str | None) -> None:
    if file_id:
        with client.open(file_id) as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()


def exit_status(batch: Batch) -> int:
    if batch.status != "completed":
        return NOT_COMPLETED
    return SOME_FAILED if counts_of(batch)[2] else ALL_SUCCEEDED
