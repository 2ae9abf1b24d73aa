"""``everbatch worker --processes N``: several worker processes under one command, for example one for each core."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Generator
from typing import Final

import click

from activities.settings import Settings

log = logging.getLogger("everbatch")

START_SECONDS: Final = 10.0
"""A worker that exits with an error within this time is considered unable to start; it has logged the reason."""
RESTART_SECONDS: Final = 2.0
KILL_SECONDS: Final = 15.0
"""Time in addition to the drain timeout after which a worker that has not ended is killed."""


class StartError(Exception):
    """The process cannot start. The message tells the user why and what to do."""


async def run_worker_processes(settings: Settings, count: int, stop: asyncio.Event, at_once: asyncio.Event) -> None:
    """Keep ``count`` workers running until ``stop`` is set. Then let them drain, or end them now if ``at_once`` is set.

    A worker that ends for any other reason is replaced. In the meantime, Temporal gives its shards to the others.

    Raises:
        StartError: a worker exited with an error right after its start, as its replacement would too.
    """
    click.echo(f"Everbatch: {count} worker processes, with EVERBATCH_MAX_IN_FLIGHT={settings.max_in_flight} each")
    with _lifeline() as lifeline:
        keepers = [asyncio.create_task(_keep(settings, number, lifeline, stop, at_once)) for number in range(count)]
        try:
            await asyncio.gather(*keepers)
        finally:
            stop.set()
            await asyncio.gather(*keepers, return_exceptions=True)


@contextlib.contextmanager
def _lifeline() -> Generator[int]:
    """Yield the reading end of a pipe that closes however this process ends, upon which its workers end too."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


async def _keep(settings: Settings, number: int, lifeline: int, stop: asyncio.Event, at_once: asyncio.Event) -> None:
    while not stop.is_set():
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            # Without -P, a folder named "api" in the working directory would be imported instead of this package.
            *(sys.executable, "-P", "-m", "api.cli.main", "worker", "--lifeline", str(lifeline)),
            env={**os.environ, **_environment(settings, number)},
            pass_fds=(lifeline,),
            # Ctrl-C in a terminal must reach only the parent, which passes it on once.
            start_new_session=True,
        )
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not stop.is_set():
            if ended.result() == 1 and time.monotonic() - started < START_SECONDS:
                raise StartError("a worker process cannot start; see above")
            log.error("worker process %d (pid %d) ended with %d; starting another", number, process.pid, ended.result())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), RESTART_SECONDS)
            continue
        await _end(process, ended, number, settings.drain_timeout, at_once)


async def _end(
    process: asyncio.subprocess.Process,
    ended: asyncio.Task[int],
    number: int,
    drain_timeout: float,
    at_once: asyncio.Event,
) -> None:
    hurrying = asyncio.create_task(at_once.wait())
    patience = drain_timeout + KILL_SECONDS
    for waiting in ([ended, hurrying], [ended]):  # the second round only if `at_once` is set before the worker ends
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() or not hurrying.done():
            break
        patience = KILL_SECONDS
    hurrying.cancel()
    if not ended.done():
        log.error("worker process %d (pid %d) did not stop and was killed", number, process.pid)
        process.kill()
        await process.wait()


def _environment(settings: Settings, number: int) -> dict[str, str]:
    """Return a worker's variables beside the parent's environment: command-line options and its own metrics port."""
    environment = {"EVERBATCH_MAX_IN_FLIGHT": str(settings.max_in_flight)}
    if settings.metrics_address:
        host, _, port = settings.metrics_address.rpartition(":")
        environment["EVERBATCH_METRICS_ADDRESS"] = f"{host}:{int(port) + number}"
    return environment
