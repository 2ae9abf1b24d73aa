"""What ``everbatch submit``, ``list``, ``status``, ``cancel`` and ``results`` do. Each returns its exit status."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

import click
import httpx2
from openai import APIConnectionError, APIError, APIStatusError, OpenAI, OpenAIError
from openai.types import Batch

from api.client import PATIENCE_SECONDS, TERMINAL, BatchClient
from api.client_errors import message_of, problems
from api.client_lines import endpoint_of
from api.display import Display, counts_of, details, table

DEFAULT_URL: Final = "http://127.0.0.1:8000/v1"
FIRST_PATIENCE_SECONDS: Final = 2.0
"""For a server that has not answered yet: its address may be wrong."""
MAX_POLL_SECONDS: Final = 5.0
STDOUT: Final = Path("-")

ALL_SUCCEEDED, NOT_COMPLETED, SOME_FAILED, INTERRUPTED = 0, 1, 2, 130


class BadInput(Exception):
    """What the command was given cannot be used; the message is one line for the user."""


class Session:
    """One command against one server."""

    def __init__(self, openai: OpenAI, display: Display) -> None:
        self._openai = openai
        self.display = display
        self.waiting_for: Batch | None = None
        """A batch that goes on when this command does not."""

    @property
    def client(self) -> BatchClient:
        """For a server that may not be there."""
        return BatchClient(self._openai, patience=FIRST_PATIENCE_SECONDS)

    @property
    def patient(self) -> BatchClient:
        """For a server that has answered before, and so will be back."""
        return BatchClient(self._openai, patience=PATIENCE_SECONDS, max_poll=MAX_POLL_SECONDS, away=self._away)

    def _away(self, error: APIError) -> None:
        self.display.say(f"the server is away ({_reason(error)}); waiting")

    def watch(self, batch: Batch) -> Batch:
        """Show a batch until it has ended."""
        self.waiting_for = batch
        for latest in self.patient.follow(batch.id):
            self.waiting_for = latest
            self.display.show(latest)
        self.display.end_line()
        return self.waiting_for


def run(name: str, base_url: str | None, api_key: str | None, command: Callable[[Session], int]) -> int:
    """Run a command; whatever goes wrong is one line on stderr.

    Args:
        name: of the command.
        base_url: the server; else ``OPENAI_BASE_URL``, else the one that ``everbatch dev`` starts.
        api_key: else ``OPENAI_API_KEY``, else none.
        command: does it.
    """
    display = Display(sys.stderr)
    session = None
    try:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        with OpenAI(base_url=url, api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none") as openai:
            session = Session(openai, display)
            return command(session)
    except BrokenPipeError:  # `… | head` has seen enough; click ends the command without a word
        raise
    except (OpenAIError, BadInput, OSError, ValueError, LookupError, httpx2.InvalidURL) as error:
        waiting = session.waiting_for if session else None
        display.say(f"everbatch {name}: {_reason(error)}{f'; the batch is {waiting.id}' if waiting else ''}")
        return NOT_COMPLETED
    except KeyboardInterrupt:
        waiting = session.waiting_for if session else None
        goes_on = waiting and waiting.status not in TERMINAL
        display.say(f"stopped; the batch goes on: everbatch status {waiting.id}" if waiting and goes_on else "stopped")
        return INTERRUPTED


def _reason(error: Exception) -> str:
    if isinstance(error, APIConnectionError):
        return f"no connection to {error.request.url.copy_with(query=None)} ({error.__cause__ or error})"
    if isinstance(error, APIStatusError):
        return f"{message_of(error):.500} (HTTP {error.status_code})"
    return str(error)


def submit(
    session: Session,
    source: Path,
    output: Path,
    errors: Path | None,
    endpoint: str | None,
    window: str,
    idempotency_key: str | None,
) -> int:
    """Run a batch from file to file."""
    endpoint = endpoint or endpoint_of(source)
    if not endpoint:
        raise BadInput(f"{source}: the first line names no url; say which --endpoint")
    _check_targets(output, errors, source)
    batch = session.client.submit(source, endpoint, window, idempotency_key=idempotency_key)
    session.waiting_for = batch
    session.display.say(f"batch {batch.id}")
    return _take(session, session.watch(batch), output, errors)


def list_batches(session: Session, limit: int, status: str | None, as_json: bool) -> int:
    """The newest batches."""
    batches = session.client.batches(min(limit, 100) if status is None else 100)
    wanted = (batch for batch in batches if status is None or batch.status == status)
    found = list(islice(wanted, limit))
    for line in [batch.to_json(indent=None) for batch in found] if as_json else table(found):
        click.echo(line)
    return ALL_SUCCEEDED


def show_status(session: Session, batch_id: str, watch: bool, as_json: bool) -> int:
    """One batch, now or until it has ended."""
    batch = session.client.retrieve(batch_id)
    if watch:
        batch = session.watch(batch)
    _print(batch, as_json)
    return _exit_status(batch) if watch else ALL_SUCCEEDED


def cancel(session: Session, batch_id: str, wait: bool, as_json: bool) -> int:
    """Ask a batch to stop, and wait until it has."""
    batch = session.client.cancel(batch_id)
    if wait:
        batch = session.watch(batch)
    _print(batch, as_json)
    return ALL_SUCCEEDED if batch.status in ("cancelling", "cancelled") else NOT_COMPLETED


def results(session: Session, batch_id: str, output: Path, errors: Path | None) -> int:
    """Download what a batch that has ended has left."""
    _check_targets(output, errors)
    batch = session.client.retrieve(batch_id)
    if batch.status not in TERMINAL:
        raise BadInput(f"{batch.id} is {batch.status}; wait for it: everbatch status {batch.id} --watch")
    return _take(session, batch, output, errors)


def _print(batch: Batch, as_json: bool) -> None:
    for line in [batch.to_json(indent=None)] if as_json else details(batch):
        click.echo(line)


def _check_targets(output: Path, errors: Path | None, source: Path | None = None) -> None:
    """At the end, perhaps a day later, it would be too late to ask."""
    used = [source.resolve()] if source else []
    for path in filter(None, (output, errors)):
        if (path == STDOUT and path is output) or (path.exists() and not path.is_file()):
            continue
        is_folder = path.parent.is_dir()
        if not is_folder or not os.access(path.parent, os.W_OK | os.X_OK):
            raise BadInput(f"{path}: {path.parent} {'cannot be written to' if is_folder else 'is no folder'}")
        if path.resolve() in used:
            raise BadInput(f"{path} is given for two things")
        used.append(path.resolve())


def _take(session: Session, batch: Batch, output: Path, errors: Path | None) -> int:
    """Fetch the files of a batch that has ended, and say how it went."""
    session.waiting_for = batch
    say, client = session.display.say, session.patient
    total, completed, failed = counts_of(batch)
    for problem in problems(batch):
        say(f"  {problem}")
    say(f"{batch.status}: {total} requests, {completed} completed, {failed} failed")
    if batch.status != "failed":
        if output == STDOUT:
            _copy_to_stdout(client, batch.output_file_id)
        else:
            client.download(batch.output_file_id, output)
            say(f"results: {output}")
        if errors:
            client.download(batch.error_file_id, errors)
            say(f"errors: {errors}")
        elif batch.error_file_id:
            say(f"errors: file {batch.error_file_id} on the server (--errors FILE fetches it)")
    return _exit_status(batch)


def _copy_to_stdout(client: BatchClient, file_id: str | None) -> None:
    if file_id:
        with client.open(file_id) as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()


def _exit_status(batch: Batch) -> int:
    if batch.status != "completed":
        return NOT_COMPLETED
    return SOME_FAILED if counts_of(batch)[2] else ALL_SUCCEEDED
