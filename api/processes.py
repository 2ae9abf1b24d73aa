"""The processes that the command line starts: the API, a worker, the embedded Temporal, and all of them in one."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import RPCError

from activities.inference import InferenceClient
from activities.metrics import serve_metrics
from activities.namespace import prepare_namespace
from activities.settings import Settings
from activities.storage import ObjectStore, open_store
from activities.worker import BatchWorker, connect, connect_when_there, temporal_address, when_there
from api.app import create_app
from api.echo import run_echo_model
from api.gateway import TemporalGateway
from api.http_server import listen, serve
from api.temporal_binary import TemporalBinary
from api.temporal_server import EmbeddedTemporal

log = logging.getLogger("everbatch")

RETENTION: Final = timedelta(days=7)
"""How long the embedded server remembers closed workflows. Records in the store outlive it."""
CONNECT_LIMIT: Final = timedelta(seconds=5)

Say = Callable[[str], None]


class StartError(Exception):
    """The process cannot start; the message tells the user why and what to do."""


@contextlib.contextmanager
def stop_on_signals() -> Generator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set; a second one ends the process at once."""
    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def check_upstream(settings: Settings, host: str, port: int) -> None:
    """Refuse to be one's own inference server: a request would go round for ever.

    Raises:
        StartError: the upstream is this server's own address, or there is none.
    """
    if not settings.upstream_url:
        raise StartError("no inference server: set EVERBATCH_UPSTREAM_URL, for example http://127.0.0.1:8001/v1")
    parts = urlsplit(settings.upstream_url)
    try:
        upstream_port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise StartError(f"EVERBATCH_UPSTREAM_URL={settings.upstream_url}: {error}") from error
    if upstream_port == port and _is_own_host(parts.hostname or "", host):
        raise StartError(
            f"the inference server {settings.upstream_url} is this server's own address; "
            "point EVERBATCH_UPSTREAM_URL elsewhere or choose another --port"
        )


def _is_own_host(upstream: str, host: str) -> bool:
    if upstream in (host, "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(upstream)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


async def run_api(settings: Settings, host: str, port: int, say: Say) -> None:
    """The API alone, until a signal. Until Temporal is there it serves what it can and answers the rest with 503."""
    check_upstream(settings, host, port)
    store = _open_store(settings)
    with listen(host, port) as listener, stop_on_signals() as stop:
        client = await connect(lazy=True)
        async with _inference(settings) as inference:
            say(f"Everbatch API on http://{host}:{listener.getsockname()[1]}/v1")
            telling = asyncio.create_task(_tell_of_temporal(client, stop))
            try:
                await _serve_api(settings, client, temporal_address(), store, inference, listener, stop)
            finally:
                telling.cancel()


async def _tell_of_temporal(client: Client, stop: asyncio.Event) -> None:
    """Say that Temporal is not there, and when it is. For the log alone: the API serves without it too."""
    try:
        await when_there(lambda: client.service_client.check_health(timeout=CONNECT_LIMIT), stop)
    except Exception as error:
        log.error("Temporal at %s cannot be reached: %s", temporal_address(), error)


async def run_worker(settings: Settings, say: Say) -> None:
    """A worker alone, until a signal. Waits for Temporal where that is not there yet."""
    check_upstream(settings, "", -1)
    store = _open_store(settings)
    with stop_on_signals() as stop:
        runtime = _runtime(settings)
        try:
            client = await connect_when_there(stop, runtime)
        except ValueError as error:
            raise StartError(f"TEMPORAL_ADDRESS={temporal_address()}: {error}") from error
        if client is None:
            return
        await _prepare(client)
        async with _inference(settings) as inference:
            worker = BatchWorker(client, settings, store, inference)
            say(f"Everbatch worker on task queue {settings.task_queue}, {settings.max_in_flight} requests in flight")
            await worker.run(stop)


async def run_temporal(binary: TemporalBinary, data_dir: Path, port: int, ui_port: int, say: Say) -> None:
    """The embedded Temporal alone, until a signal."""
    server = EmbeddedTemporal(binary, data_dir, port, ui_port, port_option="--port")
    with stop_on_signals() as stop:
        async with server:
            await prepare_namespace(await connect(server.address), retention=RETENTION)
            say(f"Temporal on {server.address}, UI on {server.ui_url}")
            await _until_stop_or_end(server, stop)


async def run_dev(
    settings: Settings, binary: TemporalBinary, host: str, port: int, temporal_port: int, ui_port: int, say: Say
) -> None:
    """All of it in one process and one child, until a signal."""
    if settings.upstream_url:
        check_upstream(settings, host, port)
    store = _open_store(settings)
    server = EmbeddedTemporal(binary, Path(settings.data_dir), temporal_port, ui_port)
    with listen(host, port) as listener, stop_on_signals() as stop:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(server)
            client = await connect(server.address, runtime=_runtime(settings))
            await prepare_namespace(client, retention=RETENTION)
            if not settings.upstream_url:
                url = await stack.enter_async_context(run_echo_model())
                settings = settings.model_copy(update={"upstream_url": url})
                say(
                    "No inference server is configured: a built-in echo model answers. "
                    "Point to a real one with --upstream-url http://127.0.0.1:8001/v1 or EVERBATCH_UPSTREAM_URL."
                )
            inference = await stack.enter_async_context(_inference(settings))
            worker = BatchWorker(client, settings, store, inference)
            say(f"Everbatch API  http://{host}:{listener.getsockname()[1]}/v1")
            say(f"Temporal UI    {server.ui_url}")
            say(f"Data           {settings.data_dir}")
            await _all_until_stop(
                stop,
                _serve_api(settings, client, server.address, store, inference, listener, stop),
                worker.run(stop),
                _until_stop_or_end(server, stop),
            )


async def _all_until_stop(stop: asyncio.Event, *parts: Coroutine[None, None, None]) -> None:
    """Run all parts; when one ends, tell the others to, and wait until they have. The first failure is raised."""
    tasks = [asyncio.create_task(part) for part in parts]
    first, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    # Whatever failed: the caller closes what the others need to end well.
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in sorted(tasks, key=lambda task: task not in first):
        task.result()


async def _until_stop_or_end(server: EmbeddedTemporal, stop: asyncio.Event) -> None:
    ended = asyncio.create_task(server.wait())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not stop.is_set():
        raise StartError(f"the embedded Temporal server ended with status {ended.result()}; see {server.log_path}")
    ended.cancel()


async def _serve_api(
    settings: Settings,
    client: Client,
    address: str,
    store: ObjectStore,
    inference: InferenceClient,
    listener: socket.socket,
    stop: asyncio.Event,
) -> None:
    gateway = TemporalGateway(client, store, settings.task_queue, address)
    await serve(create_app(settings, gateway, store, inference), listener, stop)


def _open_store(settings: Settings) -> ObjectStore:
    try:
        return open_store(settings)
    except ValueError as error:
        raise StartError(str(error)) from error


@contextlib.asynccontextmanager
async def _inference(settings: Settings) -> AsyncGenerator[InferenceClient]:
    key = settings.upstream_api_key.get_secret_value()
    client = InferenceClient(settings.upstream_url, key, settings.request_timeout)
    try:
        yield client
    finally:
        await client.close()


def _runtime(settings: Settings) -> Runtime | None:
    if not settings.metrics_address:
        return None
    try:
        return serve_metrics(settings.metrics_address)
    except (RuntimeError, ValueError) as error:
        raise StartError(f"EVERBATCH_METRICS_ADDRESS={settings.metrics_address}: {error}") from error


async def _prepare(client: Client) -> None:
    """On a cluster that others manage it may be prepared already, and this worker may lack the right to look."""
    try:
        await prepare_namespace(client)
    except (RPCError, RuntimeError, TimeoutError) as error:
        log.warning("the namespace %s could not be prepared: %s", client.namespace, error)
