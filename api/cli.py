"""The ``everbatch`` command."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

import activities
import api
import workflows
from activities.settings import Settings
from api import __version__
from api.http_server import PortTaken
from api.temporal_binary import EmbeddedTemporalError, find_temporal

host_option = click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
port_option = click.option("--port", default=8000, show_default=True, help="Port of the API; 0 picks a free one.")


def load_settings(**given: object) -> Settings:
    """Settings from the environment, with what the command line gave on top.

    Raises:
        click.ClickException: a value is not allowed.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        first = error.errors()[0]
        name = "EVERBATCH_" + str(first["loc"][0]).upper() if first["loc"] else "settings"
        raise click.ClickException(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None


def run(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a process until it ends; what keeps it from starting is one line for the user."""
    from api.processes import StartError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("temporalio.worker", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        asyncio.run(start())
    except (StartError, EmbeddedTemporalError, PortTaken) as error:
        raise click.ClickException(str(error)) from None


def say(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="everbatch")
def main() -> None:
    """A durable Batch API for LLM inference: OpenAI-compatible, every batch a Temporal workflow."""
    parents = {Path(package.__path__[0]).resolve().parent for package in (workflows, activities, api)}
    if len(parents) > 1:
        raise click.ClickException(
            "other packages of the names workflows, activities or api are installed here; "
            "give Everbatch an environment of its own"
        )


@main.command()
@host_option
@port_option
@click.option("--temporal-port", default=7233, show_default=True, help="Port of the embedded Temporal server.")
@click.option("--ui-port", default=8233, show_default=True, help="Port of the Temporal UI.")
@click.option("--data-dir", default=None, help="Folder for local state. [EVERBATCH_DATA_DIR]")
@click.option("--upstream-url", default=None, help="Inference server. [EVERBATCH_UPSTREAM_URL]")
@click.option("--upstream-api-key", default=None, help="Its key. [EVERBATCH_UPSTREAM_API_KEY]")
@click.option("--max-in-flight", default=None, type=int, help="Requests sent at once. [EVERBATCH_MAX_IN_FLIGHT]")
def dev(
    host: str,
    port: int,
    temporal_port: int,
    ui_port: int,
    data_dir: str | None,
    upstream_url: str | None,
    upstream_api_key: str | None,
    max_in_flight: int | None,
) -> None:
    """Everything on one machine: embedded Temporal, worker and API."""
    from api.processes import run_dev

    settings = load_settings(
        data_dir=data_dir, upstream_url=upstream_url, upstream_api_key=upstream_api_key, max_in_flight=max_in_flight
    )

    async def start() -> None:
        binary = await asyncio.to_thread(find_temporal, settings.temporal_cli, sys.stdout)
        await run_dev(settings, binary, host, port, temporal_port, ui_port, say)

    run(start)


@main.command()
@click.option("--port", default=7233, show_default=True, help="Port of the server.")
@click.option("--ui-port", default=8233, show_default=True, help="Port of its UI.")
@click.option("--data-dir", default=None, help="Folder for its database. [EVERBATCH_DATA_DIR]")
def temporal(port: int, ui_port: int, data_dir: str | None) -> None:
    """The embedded Temporal server alone."""
    from api.processes import run_temporal

    settings = load_settings(data_dir=data_dir)

    async def start() -> None:
        binary = await asyncio.to_thread(find_temporal, settings.temporal_cli, sys.stdout)
        await run_temporal(binary, Path(settings.data_dir), port, ui_port, say)

    run(start)


@main.command()
@host_option
@port_option
def serve(host: str, port: int) -> None:
    """The API alone. Temporal is found by its own TEMPORAL_* variables."""
    from api.processes import run_api

    settings = load_settings()
    run(lambda: run_api(settings, host, port, say))


@main.command()
@click.option("--max-in-flight", default=None, type=int, help="Requests sent at once. [EVERBATCH_MAX_IN_FLIGHT]")
def worker(max_in_flight: int | None) -> None:
    """A worker alone. Temporal is found by its own TEMPORAL_* variables."""
    from api.processes import run_worker

    settings = load_settings(max_in_flight=max_in_flight)
    run(lambda: run_worker(settings, say))


@main.command()
@click.option("-i", "--input", "source", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--errors", default=None, type=click.Path(dir_okay=False, path_type=Path), help="For the error file.")
@click.option("--endpoint", default=None, help="For example /v1/embeddings. [the url of the first line]")
@click.option("--completion-window", default="24h", show_default=True)
@click.option("--base-url", default=None, help="The server. [OPENAI_BASE_URL, else http://127.0.0.1:8000/v1]")
@click.option("--api-key", default=None, help="[OPENAI_API_KEY]")
@click.option("--idempotency-key", default=None, help="The same key and file make the same batch, not another.")
def submit(
    source: Path,
    output: Path,
    errors: Path | None,
    endpoint: str | None,
    completion_window: str,
    base_url: str | None,
    api_key: str | None,
    idempotency_key: str | None,
) -> None:
    """Run a batch from a file to a file: upload, create, wait, download.

    Exits with 0 when all requests succeeded, 2 when some failed, 1 when the batch did not complete.
    """
    from openai import OpenAI

    from api.client import BatchClient
    from api.submit import submit as submit_file

    url = base_url or os.environ.get("OPENAI_BASE_URL") or "http://127.0.0.1:8000/v1"
    key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
    with OpenAI(base_url=url, api_key=key) as client:
        sys.exit(submit_file(BatchClient(client), source, output, errors, endpoint, completion_window, idempotency_key))


if __name__ == "__main__":
    main(prog_name="everbatch")
