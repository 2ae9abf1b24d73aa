"""The commands that show, control and retry batches and fetch their results.

:mod:`api.cli.submit` adds its command to the same group.
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

import click
from openai.types import Batch

from api.cli.display import counts_of, details, events_table, other_failures, outcome, table
from api.cli.session import (
    ALL_SUCCEEDED,
    NOT_COMPLETED,
    SOME_FAILED,
    STDOUT,
    BadInputError,
    ClientCommand,
    Session,
)
from api.client import TERMINAL, BatchClient
from api.client.errors import problems

STATUSES = ("validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")

batch_id_argument = click.argument("batch_id", metavar="ID")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's own JSON, one line for each batch.")
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Where to write the results; - is standard output.",
)
errors_option = click.option(
    "--errors", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the error file."
)


@click.group()
def client_commands() -> None:
    """Hold the commands, for ``everbatch`` to take over."""


@client_commands.command("list", cls=ClientCommand)
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(min=1), help="The largest number of batches to show."
)
@click.option("--status", type=click.Choice(STATUSES), help="Show only batches of this status.")
@json_option
def list_batches(session: Session, limit: int, status: str | None, as_json: bool) -> int:
    """Show the newest batches."""
    batches = session.client.batches(min(limit, 100) if status is None else 100)
    wanted = (batch for batch in batches if status is None or batch.status == status)
    found = list(islice(wanted, limit))
    for line in [batch.to_json(indent=None) for batch in found] if as_json else table(found):
        click.echo(line)
    return ALL_SUCCEEDED


@client_commands.command("status", cls=ClientCommand)
@batch_id_argument
@click.option("--watch", is_flag=True, help="Show it until it has ended; exits as submit does.")
@json_option
def show_status(session: Session, batch_id: str, watch: bool, as_json: bool) -> int:
    """Show one batch."""
    batch = session.client.retrieve(batch_id)
    if watch:
        batch = session.watch(batch)
    _print(batch, as_json)
    return exit_status(batch) if watch else ALL_SUCCEEDED


@client_commands.command(cls=ClientCommand)
@batch_id_argument
@json_option
def events(session: Session, batch_id: str, as_json: bool) -> int:
    """Show the events of a batch, and what it has waited for."""
    found = session.client.events(batch_id)
    for line in map(json.dumps, found) if as_json else events_table(found):
        click.echo(line)
    return ALL_SUCCEEDED


@client_commands.command(cls=ClientCommand)
@batch_id_argument
@json_option
def pause(session: Session, batch_id: str, as_json: bool) -> int:
    """Pause a batch: it sends no more requests. Those in flight finish, and the completion window keeps running."""
    _print(session.client.set_paused(batch_id, True), as_json)
    return ALL_SUCCEEDED


@client_commands.command(cls=ClientCommand)
@batch_id_argument
@json_option
def resume(session: Session, batch_id: str, as_json: bool) -> int:
    """Resume a paused batch."""
    _print(session.client.set_paused(batch_id, False), as_json)
    return ALL_SUCCEEDED


@client_commands.command(cls=ClientCommand)
@batch_id_argument
@click.option("--wait", is_flag=True, help="Wait until it has ended; exits with 1 if it was not cancelled.")
@json_option
def cancel(session: Session, batch_id: str, wait: bool, as_json: bool) -> int:
    """Cancel a batch. The answers that it already has are kept."""
    batch = session.client.cancel(batch_id)
    if wait:
        batch = session.watch(batch)
    _print(batch, as_json)
    return ALL_SUCCEEDED if batch.status in ("cancelling", "cancelled") else NOT_COMPLETED


@client_commands.command(cls=ClientCommand)
@batch_id_argument
@output_option
@errors_option
@click.option("--follow", is_flag=True, help="Write results and errors as they come, until the batch has ended.")
def results(session: Session, batch_id: str, output: Path | None, errors: Path | None, follow: bool) -> int:
    """Download the files of a batch that has ended, or follow one that runs. Exits as submit does."""
    if follow and errors:
        raise BadInputError("with --follow, results and errors come in one stream: leave --errors out")
    if not (output or follow):
        raise BadInputError("say where to write the results: -o FILE, or -o - for standard output")
    check_targets(output, errors)
    batch = session.client.retrieve(batch_id)
    if follow:
        return _follow(session, batch, output or STDOUT)
    if batch.status not in TERMINAL:
        raise ValueError(
            f"{batch.id} is {batch.status}; wait for it: everbatch status {batch.id} --watch, or download its "
            "results so far: --follow"
        )
    return take(session, batch, output, errors)


def _follow(session: Session, batch: Batch, output: Path) -> int:
    """Write the results of a batch as they are committed, until the batch has ended."""
    session.waiting_for = batch
    with contextlib.ExitStack() as stack:
        target = sys.stdout.buffer if output == STDOUT else stack.enter_context(output.open("wb"))
        for page in session.patient.result_pages(batch.id):
            target.write(page.content)
            target.flush()
    batch = session.patient.retrieve(batch.id)
    say_outcome(session, batch)
    return exit_status(batch)


@client_commands.command(cls=ClientCommand)
@batch_id_argument
@click.option("--code", "codes", multiple=True, help="Retry only requests with this error code. May be repeated.")
@output_option
@errors_option
@click.option("--wait", is_flag=True, help="Wait for the end of the new batch, as with --output or --errors.")
def retry(
    session: Session, batch_id: str, codes: tuple[str, ...], output: Path | None, errors: Path | None, wait: bool
) -> int:
    """Send the failed requests of a batch that has ended again, as a new batch.

    The results of the new batch cover all requests of the first one: existing answers are copied. Without --output,
    --errors and --wait it prints the id of the new batch and exits. Exits as submit does.
    """
    check_targets(output, errors)
    batch = session.waiting_for = session.client.retry(batch_id, codes or None)
    session.display.say(f"batch {batch.id}")
    if not (wait or output or errors):
        click.echo(batch.id)
        return ALL_SUCCEEDED
    return take(session, session.watch(batch), output, errors)


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


def _download(client: BatchClient, batch: Batch, output: Path) -> None:
    if output != STDOUT:
        client.download(batch.output_file_id, output)
    elif batch.output_file_id:
        with client.open(batch.output_file_id) as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()


def take(
    session: Session,
    batch: Batch,
    output: Path | None,
    errors: Path | None,
    write: Callable[[BatchClient, Batch, Path], None] = _download,
) -> int:
    """Print the outcome of a batch that has ended, ``write`` its results, and return the exit status."""
    say_outcome(session, batch)
    say, client = session.display.say, session.patient
    if batch.status != "failed":
        if output:
            write(client, batch, output)
        if output and output != STDOUT:
            say(f"results: {output}")
        elif not output and batch.output_file_id:
            say(f"results: file {batch.output_file_id} on the server (everbatch results {batch.id} -o FILE)")
        if errors:
            client.download(batch.error_file_id, errors)
            say(f"errors: {errors}")
        elif batch.error_file_id:
            say(f"errors: file {batch.error_file_id} on the server (--errors FILE downloads it)")
    return exit_status(batch)


def exit_status(batch: Batch) -> int:
    if batch.status != "completed":
        return NOT_COMPLETED
    return SOME_FAILED if counts_of(batch)[2] else ALL_SUCCEEDED
