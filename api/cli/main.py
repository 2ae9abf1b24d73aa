"""The ``everbatch`` command."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import click
from pydantic import ValidationError

from activities.settings import Settings
from api import __version__
from api.cli.keys import keys
from api.cli.unknown_settings import unknown_variables
from api.dev.temporal_binary import EmbeddedTemporalError, find_temporal
from api.http.logs import configure_logging

host_option = click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
PORT = click.IntRange(0, 65_535)
port_option = click.option(
    "--port", default=8000, show_default=True, type=PORT, help="Port of the API; 0 picks a free one."
)

insecure_option = click.option(
    "--insecure",
    is_flag=True,
    help="Listen on other addresses than loopback without API keys: everyone who can reach it may use it.",
)


def load_settings(**given: object) -> Settings:
    """Return the settings from the environment, overridden by those given on the command line.

    Raises:
        click.ClickException: a value is invalid.
    """
    for name, meant in unknown_variables(os.environ).items():
        advice = f"did you mean {meant}?" if meant else "docs/settings.md lists all."
        click.echo(f"Warning: {name} is not a setting of Everbatch; {advice}", err=True)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        first = error.errors()[0]
        name = f"EVERBATCH_{first['loc'][0]}: ".upper() if first["loc"] else ""  # other messages contain names
        raise click.ClickException(name + first["msg"].removeprefix("Value error, ")) from None


def run(
    settings: Settings,
    start: Callable[[], Coroutine[Any, Any, None]],
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run a process until it ends. If it cannot start, show the reason to the user in one line.

    Args: ``make_loop`` creates its event loop; the default is asyncio's.
    """
    from api.http.server import PortTakenError
    from api.processes.run import StartError

    configure_logging(settings.log_format)
    os.umask(0o077)  # files that a server writes are readable by their owner only
    try:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(start())
    except (StartError, EmbeddedTemporalError, PortTakenError) as error:
        raise click.ClickException(str(error)) from None


class _Commands(click.Group):
    """Also has the client commands, which are imported only when needed: they load the OpenAI SDK."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._client_commands().get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*self.commands, *self._client_commands()])

    def _client_commands(self) -> Mapping[str, click.Command]:
        from api.cli.submit import client_commands

        return client_commands.commands


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="everbatch")
def main() -> None:
    """A durable Batch API for LLM inference: OpenAI-compatible, every batch a Temporal workflow."""


@main.command()
@host_option
@port_option
@click.option(
    "--temporal-port", default=7233, show_default=True, type=PORT, help="Port of the embedded Temporal server."
)
@click.option("--ui-port", default=8233, show_default=True, type=PORT, help="Port of the Temporal UI.")
@click.option("--data-dir", default=None, help="Directory for local state. [EVERBATCH_DATA_DIR]")
@click.option("--upstream-url", default=None, help="Base URL of the inference server. [EVERBATCH_UPSTREAM_URL]")
@click.option("--upstream-api-key", default=None, help="API key for the inference server. [EVERBATCH_UPSTREAM_API_KEY]")
@click.option(
    "--max-in-flight",
    default=None,
    help="Maximum number of concurrent requests, or auto. [EVERBATCH_MAX_IN_FLIGHT]",
)
@insecure_option
def dev(
    host: str,
    port: int,
    temporal_port: int,
    ui_port: int,
    data_dir: str | None,
    upstream_url: str | None,
    upstream_api_key: str | None,
    max_in_flight: str | None,
    insecure: bool,
) -> None:
    """Run everything on one machine: embedded Temporal, a worker and the API."""
    from api.processes.run import open_keys, run_dev

    settings = load_settings(
        data_dir=data_dir, upstream_url=upstream_url, upstream_api_key=upstream_api_key, max_in_flight=max_in_flight
    )

    async def start() -> None:
        keys = open_keys(settings, host, insecure)  # first, because the binary may have to be built
        binary = await asyncio.to_thread(find_temporal, settings.temporal_cli, sys.stdout)
        await run_dev(settings, keys, binary, host, port, temporal_port, ui_port)

    run(settings, start)


@main.command()
@click.option("--port", default=7233, show_default=True, type=PORT, help="Port of the server.")
@click.option("--ui-port", default=8233, show_default=True, type=PORT, help="Port of its UI.")
@click.option("--data-dir", default=None, help="Directory of its database. [EVERBATCH_DATA_DIR]")
def temporal(port: int, ui_port: int, data_dir: str | None) -> None:
    """Run the embedded Temporal server alone."""
    from api.processes.run import run_temporal

    settings = load_settings(data_dir=data_dir)

    async def start() -> None:
        binary = await asyncio.to_thread(find_temporal, settings.temporal_cli, sys.stdout)
        await run_temporal(settings, binary, port, ui_port)

    run(settings, start)


@main.command()
def setup() -> None:
    """Prepare the Temporal namespace and the store: before the first start, and after each upgrade.

    Waits for Temporal, which is configured by its own TEMPORAL_* variables. It is safe to repeat.
    """
    from api.processes.setup import run_setup

    settings = load_settings()
    run(settings, lambda: run_setup(settings))


@main.command()
@click.option("--build-id", default=None, help="Version to promote. [EVERBATCH_BUILD_ID, else the installed version]")
@click.option(
    "--force", is_flag=True, help="Promote it even if its workers lack an upstream that the current version has."
)
def promote(build_id: str | None, force: bool) -> None:
    """Start new batches on a version of the workers, if EVERBATCH_DEPLOYMENT is set."""
    from api.processes.setup import run_promote

    settings = load_settings()
    run(settings, lambda: run_promote(settings, build_id, force=force))


@main.command()
@host_option
@port_option
@insecure_option
def serve(host: str, port: int, insecure: bool) -> None:
    """Run the API. Temporal is configured by its own TEMPORAL_* variables."""
    from api.processes.run import run_api

    settings = load_settings()
    run(settings, lambda: run_api(settings, host, port, insecure=insecure))


@main.command()
@click.option(
    "--max-in-flight",
    default=None,
    help="Maximum number of concurrent requests of each process, or auto. [EVERBATCH_MAX_IN_FLIGHT]",
)
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Number of worker processes: one per core is useful.",
)
@click.option("--lifeline", default=None, type=int, hidden=True, help="A pipe that closes when the parent is gone.")
def worker(max_in_flight: str | None, processes: int, lifeline: int | None) -> None:
    """Run workers. Temporal is configured by its own TEMPORAL_* variables."""
    from api.processes.run import run_worker, run_workers

    settings = load_settings(max_in_flight=max_in_flight)
    if processes > 1:
        run(settings, lambda: run_workers(settings, processes))
    else:
        try:
            from uvloop import new_event_loop
        except ImportError:  # it installs on Linux and macOS only
            new_event_loop = asyncio.new_event_loop
        # It saves a tenth of the CPU per request. The API does not use it: when no more files can be opened, uvloop
        # closes new connections silently, while asyncio logs the error and lets them wait.
        run(settings, lambda: run_worker(settings, lifeline), new_event_loop)


main.add_command(keys)

if __name__ == "__main__":
    main(prog_name="everbatch")
