"""The command lines of the client commands. Their code and the OpenAI SDK are imported only when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

STATUSES = ("validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
OUTPUT = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
TARGET = click.Path(allow_dash=True, path_type=Path)
SCHEMA = click.Path(exists=True, dir_okay=False, path_type=Path)
ERRORS = click.Path(dir_okay=False, path_type=Path)
errors_option = click.option("--errors", default=None, type=ERRORS, help="Where to write the error file.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's own JSON, one line for each batch.")


class WrongUsageError(click.UsageError):
    """A usage error. Click's own exit status for it is 2, which here means that some requests failed."""

    exit_code = 64


class ClientCommand(click.Command):
    """A command that exits with 64 on a usage error."""

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **named)
        except click.UsageError as error:
            raise WrongUsageError(error.format_message(), error.ctx) from None


def server_options(command: Command) -> Command:
    url = click.option(
        "--base-url", default=None, help="Base URL of the server. [OPENAI_BASE_URL, else http://127.0.0.1:8000/v1]"
    )
    key = click.option("--api-key", default=None, help="API key. [OPENAI_API_KEY]")
    return url(key(command))


@click.command(cls=ClientCommand)
@click.argument("sources", metavar="[INPUT]...", nargs=-1, type=INPUT)
@click.option("-i", "--input", "named", multiple=True, type=INPUT, help="An input file; - is standard input.")
@click.option("-o", "--output", default=None, type=TARGET, help="Where to write the results; - is standard output.")
@click.option("--errors", default=None, type=TARGET, help="Where to write the error file.")
@click.option("--dry-run", is_flag=True, help="Only check the input: print its errors, requests and estimated tokens.")
@click.option("--wait", is_flag=True, help="Wait for the end of the batch, as with --output or --errors.")
@click.option("--model", default=None, help="The model that a table's prompts are for.")
@click.option("--prompt", default=None, help="The prompt for each row, or a file that has it. [{prompt}]")
@click.option("--schema", default=None, type=SCHEMA, help="A JSON schema that the answers to a table are to have.")
@click.option("--response-column", default="response", show_default=True, help="The output column of answers.")
@click.option("--error-column", default="error", show_default=True, help="The output column of errors.")
@click.option("--endpoint", default=None, help="For example /v1/embeddings. [the url of the first line]")
@click.option("--completion-window", default="24h", show_default=True, help="Time after which the batch expires.")
@click.option("--idempotency-key", default=None, help="The same key and input make the same batch, not another.")
@server_options
def submit(
    sources: tuple[Path, ...],
    named: tuple[Path, ...],
    output: Path | None,
    errors: Path | None,
    dry_run: bool,
    wait: bool,
    model: str | None,
    prompt: str | None,
    schema: Path | None,
    response_column: str,
    error_column: str,
    endpoint: str | None,
    completion_window: str,
    idempotency_key: str | None,
    base_url: str | None,
    api_key: str | None,
) -> None:
    """Run a batch: upload the input, create the batch, wait for it and download its results.

    The input is an OpenAI batch input file (JSONL), or with --model a table of prompts: a CSV file with a header, a
    JSONL file of objects, a Parquet file, or a text file with a prompt on each line. In --prompt, {column} is replaced
    by the value of the row, and {{ and }} stand for braces. The output is then the table with a response or an error in
    each row, as CSV, JSONL or Parquet by its name. With --schema, the members of the answers are columns too.

    With several inputs, each becomes a batch, and --output and --errors are folders in which NAME_output and
    NAME_errors are written for each input NAME. Files appear under their names only when they are complete.

    Exits with 0 when all requests succeeded, 2 when some failed, 1 when the batch did not complete, 64 when the command
    was used wrongly. Without --output, --errors and --wait it prints the id of the batch and exits.
    """
    from api.cli import batch_commands as do
    from api.cli.submit import Submission
    from api.cli.submit import submit as run_submission

    given = (*sources, *named)
    if not given:
        raise WrongUsageError("give an input file: everbatch submit INPUT")
    job = Submission(
        source=given[0],
        output=output,
        errors=errors,
        dry_run=dry_run,
        wait=wait,
        endpoint=endpoint,
        window=completion_window,
        idempotency_key=idempotency_key,
        model=model,
        prompt=prompt,
        response_column=response_column,
        error_column=error_column,
        schema=schema,
    )
    sys.exit(do.run("submit", base_url, api_key, lambda session: run_submission(session, job.each_of(given))))


@click.command("list", cls=ClientCommand)
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(min=1), help="The largest number of batches to show."
)
@click.option("--status", default=None, type=click.Choice(STATUSES), help="Show only batches of this status.")
@json_option
@server_options
def list_batches(limit: int, status: str | None, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Show the newest batches."""
    from api.cli import batch_commands as do

    sys.exit(do.run("list", base_url, api_key, lambda session: do.list_batches(session, limit, status, as_json)))


@click.command(cls=ClientCommand)
@click.argument("batch_id", metavar="ID")
@click.option("--watch", is_flag=True, help="Show it until it has ended; exits as submit does.")
@json_option
@server_options
def status(batch_id: str, watch: bool, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Show one batch."""
    from api.cli import batch_commands as do

    sys.exit(do.run("status", base_url, api_key, lambda session: do.show_status(session, batch_id, watch, as_json)))


@click.command(cls=ClientCommand)
@click.argument("batch_id", metavar="ID")
@json_option
@server_options
def events(batch_id: str, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Show the events of a batch, and what it has waited for."""
    from api.cli import batch_commands as do

    sys.exit(do.run("events", base_url, api_key, lambda session: do.events(session, batch_id, as_json)))


@click.command(cls=ClientCommand)
@click.argument("batch_id", metavar="ID")
@json_option
@server_options
def pause(batch_id: str, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Pause a batch: it sends no more requests. Those in flight finish, and the completion window keeps running."""
    from api.cli import batch_commands as do

    sys.exit(do.run("pause", base_url, api_key, lambda session: do.set_paused(session, batch_id, True, as_json)))


@click.command(cls=ClientCommand)
@click.argument("batch_id", metavar="ID")
@json_option
@server_options
def resume(batch_id: str, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Resume a paused batch."""
    from api.cli import batch_commands as do

    sys.exit(do.run("resume", base_url, api_key, lambda session: do.set_paused(session, batch_id, False, as_json)))


@click.command(cls=ClientCommand)
@click.argument("batch_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until it has ended; exits with 1 if it was not cancelled.")
@json_option
@server_options
def cancel(batch_id: str, wait: bool, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Cancel a batch. The answers that it already has are kept."""
    from api.cli import batch_commands as do

    sys.exit(do.run("cancel", base_url, api_key, lambda session: do.cancel(session, batch_id, wait, as_json)))


@click.command(cls=ClientCommand)
@click.argument("batch_id", metavar="ID")
@click.option("-o", "--output", default=None, type=OUTPUT, help="Where to write the results; - is standard output.")
@errors_option
@click.option("--follow", is_flag=True, help="Write results and errors as they come, until the batch has ended.")
@server_options
def results(
    batch_id: str, output: Path | None, errors: Path | None, follow: bool, base_url: str | None, api_key: str | None
) -> None:
    """Download the files of a batch that has ended, or follow one that runs. Exits as submit does."""
    from api.cli import batch_commands as do

    if follow and errors:
        raise WrongUsageError("with --follow, results and errors come in one stream: leave --errors out")
    if output is None:
        if not follow:
            raise WrongUsageError("say where to write the results: -o FILE, or -o - for standard output")
        output = Path("-")
    get = do.follow if follow else do.results
    sys.exit(do.run("results", base_url, api_key, lambda session: get(session, batch_id, output, errors)))


@click.command(cls=ClientCommand)
@click.argument("batch_id", metavar="ID")
@click.option("--code", "codes", multiple=True, help="Retry only requests with this error code. May be repeated.")
@click.option("-o", "--output", default=None, type=OUTPUT, help="Where to write the results; - is standard output.")
@errors_option
@click.option("--wait", is_flag=True, help="Wait for the end of the new batch, as with --output or --errors.")
@server_options
def retry(
    batch_id: str,
    codes: tuple[str, ...],
    output: Path | None,
    errors: Path | None,
    wait: bool,
    base_url: str | None,
    api_key: str | None,
) -> None:
    """Send the failed requests of a batch that has ended again, as a new batch.

    The results of the new batch cover all requests of the first one: existing answers are copied. Without --output,
    --errors and --wait it prints the id of the new batch and exits. Exits as submit does.
    """
    from api.cli import batch_commands as do

    job = do.Retry(batch_id, list(codes) or None, output, errors, wait)
    sys.exit(do.run("retry", base_url, api_key, lambda session: do.retry(session, job)))


CLIENT_COMMANDS: list[click.Command] = [submit, list_batches, status, events, pause, resume, cancel, results, retry]
