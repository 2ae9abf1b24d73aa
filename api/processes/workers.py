"""``everbatch worker --processes N``: several worker processes under one command, one for each core."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from typing import Final

from activities.settings import Settings

log = logging.getLogger("everbatch")

START_SECONDS: Final = 10.0
"""A worker that ends within this time cannot start at all, and has logged why."""
RESTART_SECONDS: Final = 2.0
"""Before a worker that ended by itself is started again."""
KILL_SECONDS: Final = 15.0
"""Beyond the drain timeout; a worker that has not ended then is killed."""


class WorkerStartError(Exception):
    """A worker process ended with an error at its start."""


async def run_worker_processes(
    settings: Settings, count: int, stop: asyncio.Event, at_once: asyncio.Event, say: Callable[[str], None]
) -> None:
    """Keep ``count`` workers running until ``stop`` is set; then let all of them drain, or not, if ``at_once`` is set.

    A worker that ends by itself, whatever killed it, is replaced: Temporal has given its shards to the others.

    Raises:
        WorkerStartError: one ended with an error as soon as it was started, which another would do as well.
    """
    say(f"Everbatch: {count} worker processes, with EVERBATCH_MAX_IN_FLIGHT={settings.max_in_flight} each")
    with _lifeline() as lifeline:
        keepers = [asyncio.create_task(_keep(settings, number, lifeline, stop, at_once)) for number in range(count)]
        try:
            await asyncio.gather(*keepers)
        finally:
            stop.set()
            await asyncio.gather(*keepers, return_exceptions=True)


@contextlib.contextmanager
def _lifeline() -> Generator[int]:
    """The reading end of a pipe that closes when this process is gone, however it went: its workers follow it."""
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
            # -P: else a folder called api where the command is run would be taken for ours.
            *(sys.executable, "-P", "-m", "api.cli.main", "worker", "--lifeline", str(lifeline)),
            env={**os.environ, **_environment(settings, number)},
            pass_fds=(lifeline,),
            # Ctrl-C in a terminal is for the parent, which passes it on once.
            start_new_session=True,
        )
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not stop.is_set():
            if ended.result() == 1 and time.monotonic() - started < START_SECONDS:
                raise WorkerStartError("a worker process cannot start; see above")
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
    for waiting in ([ended, hurrying], [ended]):  # the second time only if `at_once` was set before its end
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
    """What a worker is given beside the parent's own environment: options of its command line, a port of its own."""
    environment = {"EVERBATCH_MAX_IN_FLIGHT": str(settings.max_in_flight)}
    if settings.metrics_address:
        host, _, port = settings.metrics_address.rpartition(":")
        environment["EVERBATCH_METRICS_ADDRESS"] = f"{host}:{int(port) + number}"
    return environment
