"""The client commands of ``everbatch``, as they are typed. What they do, and its OpenAI client, is imported to run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

STATUSES = ("validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
OUTPUT = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
ERRORS = click.Path(dir_okay=False, path_type=Path)

errors_option = click.option("--errors", default=None, type=ERRORS, help="For the error file.")
json_option = click.option("--json", "as_json", is_flag=True, help="The API's own JSON, a line for each batch.")


def server_options(command: Command) -> Command:
    url = click.option("--base-url", default=None, help="The server. [OPENAI_BASE_URL, else http://127.0.0.1:8000/v1]")
    key = click.option("--api-key", default=None, help="[OPENAI_API_KEY]")
    return url(key(command))


@click.command()
@click.option("-i", "--input", "source", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=OUTPUT, help="For the output file; - is stdout.")
@errors_option
@click.option("--endpoint", default=None, help="For example /v1/embeddings. [the url of the first line]")
@click.option("--completion-window", default="24h", show_default=True)
@click.option("--idempotency-key", default=None, help="The same key and file make the same batch, not another.")
@server_options
def submit(
    source: Path,
    output: Path,
    errors: Path | None,
    endpoint: str | None,
    completion_window: str,
    idempotency_key: str | None,
    base_url: str | None,
    api_key: str | None,
) -> None:
    """Run a batch from a file to a file: upload, create, wait, download.

    Exits with 0 when all requests succeeded, 2 when some failed, 1 when the batch did not complete.
    """
    from api import batch_commands as do

    def command(session: do.Session) -> int:
        return do.submit(session, source, output, errors, endpoint, completion_window, idempotency_key)

    sys.exit(do.run("submit", base_url, api_key, command))


@click.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many at most.")
@click.option("--status", default=None, type=click.Choice(STATUSES), help="Only those.")
@json_option
@server_options
def list_batches(limit: int, status: str | None, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Show the newest batches."""
    from api import batch_commands as do

    sys.exit(do.run("list", base_url, api_key, lambda session: do.list_batches(session, limit, status, as_json)))


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--watch", is_flag=True, help="Until it has ended; exits as submit does.")
@json_option
@server_options
def status(batch_id: str, watch: bool, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Show one batch."""
    from api import batch_commands as do

    sys.exit(do.run("status", base_url, api_key, lambda session: do.show_status(session, batch_id, watch, as_json)))


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Until it has ended; exits with 1 if it ended otherwise.")
@json_option
@server_options
def cancel(batch_id: str, wait: bool, as_json: bool, base_url: str | None, api_key: str | None) -> None:
    """Stop a batch. What is answered already is kept."""
    from api import batch_commands as do

    sys.exit(do.run("cancel", base_url, api_key, lambda session: do.cancel(session, batch_id, wait, as_json)))


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("-o", "--output", required=True, type=OUTPUT, help="For the output file; - is stdout.")
@errors_option
@server_options
def results(batch_id: str, output: Path, errors: Path | None, base_url: str | None, api_key: str | None) -> None:
    """Download the files of a batch that has ended. Exits as submit does."""
    from api import batch_commands as do

    sys.exit(do.run("results", base_url, api_key, lambda session: do.results(session, batch_id, output, errors)))


CLIENT_COMMANDS: list[click.Command] = [submit, list_batches, status, cancel, results]
