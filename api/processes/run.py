"""Runs the processes of the commands: the API, a worker, the embedded Temporal server, or all of them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
from temporalio.client import Client
from temporalio.runtime import Runtime

from activities.configured import load_upstreams, log_until_ready, open_store
from activities.settings import Settings
from activities.store.object_store import STORE_THREADS, ObjectStore
from activities.temporal.connection import ConnectOptions, connect, connect_when_there, temporal_address, when_there
from activities.temporal.namespace import check_namespace, prepare_namespace
from activities.temporal.payload_codec import data_converter
from activities.temporal.runtime import make_runtime
from activities.temporal.schedule import prepare_schedule
from activities.temporal.tracing import TracingMissingError, tracing
from activities.toml_file import SettingsFileError
from activities.upstreams.answer_budget import AnswerBudget
from activities.upstreams.client import InferenceClient
from activities.upstreams.config import Upstream
from activities.upstreams.first_look import log_upstreams
from activities.worker import BatchWorker
from api.app import create_app, create_metrics_app
from api.dev.echo import run_echo_model
from api.dev.temporal_binary import TemporalBinary
from api.dev.temporal_server import EmbeddedTemporal
from api.gateway.temporal import TemporalGateway
from api.http.codec_server import codec_listener, codec_server
from api.http.server import listen, listen_on, raise_open_files, serve
from api.processes.collector import spare_what_has_started
from api.processes.workers import StartError, run_worker_processes
from api.tenants.keys import KeyFile

log = logging.getLogger("everbatch")

CONNECT_LIMIT: Final = timedelta(seconds=5)
SAME_SIGNAL_SECONDS: Final = 0.5
"""Signals that are this many seconds apart or less count as one."""


class Stop(asyncio.Event):
    """Set by the first signal. The second one sets ``at_once``: do not wait for work in progress."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = asyncio.Event()


@contextlib.contextmanager
def stop_on_signals(lifeline: int | None = None) -> Generator[Stop]:
    """Yield an event that SIGINT and SIGTERM set. The third signal ends the process immediately.

    Args: ``lifeline`` is the read end of a pipe. Its closing counts as the first signal.
    """
    stop = Stop()
    signalled_at = float("-inf")

    def on_signal() -> None:
        nonlocal signalled_at
        # `timeout` and many wrappers send a signal to the process and then to its group.
        if loop.time() - signalled_at < SAME_SIGNAL_SECONDS:
            return
        signalled_at = loop.time()
        if stop.at_once.is_set():
            os._exit(130)
        (stop.at_once if stop.is_set() else stop).set()

    def orphaned() -> None:
        assert lifeline is not None
        loop.remove_reader(lifeline)
        stop.set()

    loop = asyncio.get_running_loop()
    if lifeline is not None:
        loop.add_reader(lifeline, orphaned)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        if lifeline is not None:
            loop.remove_reader(lifeline)


def check_upstreams(settings: Settings, host: str, port: int) -> list[Upstream]:
    """Return the upstreams. This server must not be one of them: requests would loop endlessly.

    Raises:
        StartError: an upstream has this server's own address, there is no upstream, or they cannot be read.
    """
    try:
        upstreams = load_upstreams(settings)
    except SettingsFileError as error:
        raise StartError(str(error)) from error
    if not upstreams:
        raise StartError(
            "no upstream is configured: set EVERBATCH_UPSTREAM_URL, for example http://127.0.0.1:8001/v1, "
            "or EVERBATCH_UPSTREAMS to a file that defines several"
        )
    for url in (url for upstream in upstreams for url in upstream.urls):
        parts = urlsplit(url)
        upstream_port = parts.port or (443 if parts.scheme == "https" else 80)
        if upstream_port == port and _is_own_host(parts.hostname or "", host):
            raise StartError(
                f"the upstream {url} is this server's own address; "
                "point the upstream elsewhere or choose another --port"
            )
    return upstreams


def open_keys(settings: Settings, host: str, insecure: bool) -> KeyFile | None:
    """Return the key file, if one is set. Without keys, everyone who reaches the API may use it: only loopback is safe.

    Raises:
        StartError: the key file cannot be used, or there is none and ``host`` can be reached from other machines.
    """
    if settings.keys_file:
        try:
            return KeyFile(Path(settings.keys_file))
        except SettingsFileError as error:
            raise StartError(f"EVERBATCH_KEYS_FILE: {error}") from error
    if not insecure and not _is_loopback(host):
        raise StartError(
            f"--host {host} lets everyone who can reach it use this server: set EVERBATCH_KEYS_FILE to a file of keys, "
            "which `everbatch keys create --tenant NAME --file FILE` makes, or say --insecure"
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may stand for any address


def _is_own_host(upstream: str, host: str) -> bool:
    if upstream in (host, "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(upstream)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


async def run_api(settings: Settings, host: str, port: int, *, insecure: bool = False) -> None:
    """Run the API until a signal. While Temporal is not available, requests that need it are answered with 503."""
    upstreams = check_upstreams(settings, host, port)
    keys = open_keys(settings, host, insecure)
    store = _open_store(settings)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORE_THREADS, "store"))  # default: 6 on 2 cores
    with (
        listen(host, port) as listener,
        codec_listener(settings) as codec,
        _connect_options(settings, "everbatch-api") as options,
        stop_on_signals() as stop,
    ):
        try:
            client = await connect(options=options, lazy=True)
        except ValueError as error:
            raise StartError(str(error)) from error
        async with _inference(settings, upstreams) as inference, codec_server(settings, codec):
            click.echo(f"Everbatch API on http://{host}:{listener.getsockname()[1]}/v1")
            logging_state = asyncio.create_task(_log_temporal_state(client, stop))
            try:
                await _serve_api(settings, client, temporal_address(), store, inference, keys, listener, stop)
            finally:
                logging_state.cancel()


async def _log_temporal_state(client: Client, stop: asyncio.Event) -> None:
    """Log that Temporal is not available or not set up, and when it is. The API does not wait for it."""

    async def check() -> bool:
        await client.service_client.check_health(timeout=CONNECT_LIMIT)
        return await check_namespace(client)

    try:
        await when_there(check, stop)
    except Exception as error:
        log.error("Temporal at %s cannot be reached: %s", temporal_address(), error)


async def run_workers(settings: Settings, count: int) -> None:
    """Run several worker processes until a signal."""
    check_upstreams(settings, "", -1)
    with stop_on_signals() as stop:
        await run_worker_processes(settings, count, stop, stop.at_once)


async def run_worker(settings: Settings, lifeline: int | None = None) -> None:
    """Run a worker until a signal. If Temporal is not available yet, wait for it."""
    upstreams = check_upstreams(settings, "", -1)
    store = _open_store(settings)
    with stop_on_signals(lifeline) as stop, _connect_options(settings, "everbatch-worker") as options:
        try:
            client = await connect_when_there(stop, options)
        except ValueError as error:
            raise StartError(str(error)) from error
        # A worker only checks the namespace: it may lack the permission to set it up, which is a task of others.
        if client is None or not await when_there(lambda: check_namespace(client), stop):
            return
        async with _inference(settings, upstreams) as inference:
            worker = BatchWorker(client, settings, store, inference)
            in_flight = sum(upstream.most_in_flight * len(upstream.urls) for upstream in upstreams)
            raise_open_files()
            spare_what_has_started()
            click.echo(f"Everbatch worker on task queue {settings.task_queue}, up to {in_flight} requests in flight")
            await worker.run(stop, stop.at_once)


async def run_temporal(settings: Settings, binary: TemporalBinary, port: int, ui_port: int) -> None:
    """Run the embedded Temporal server until a signal."""
    server = EmbeddedTemporal(binary, Path(settings.data_dir), port, ui_port, port_option="--port")
    with stop_on_signals() as stop:
        async with server:
            await _prepare(settings, await connect(server.address))
            click.echo(f"Temporal on {server.address}, UI on {server.ui_url}")
            await _until_stop_or_end(server, stop)


async def run_dev(
    settings: Settings,
    keys: KeyFile | None,
    binary: TemporalBinary,
    host: str,
    port: int,
    temporal_port: int,
    ui_port: int,
) -> None:
    """Run everything in one process and one child until a signal. Args: ``keys`` are those of :func:`open_keys`."""
    uses_echo = not (settings.upstream_url or settings.upstreams)
    upstreams = [] if uses_echo else check_upstreams(settings, host, port)
    store = _open_store(settings)
    with listen(host, port) as listener, stop_on_signals() as stop:
        async with contextlib.AsyncExitStack() as stack:
            codec = stack.enter_context(codec_listener(settings, "127.0.0.1:0"))
            codec_url = f"http://127.0.0.1:{codec.getsockname()[1]}" if codec else ""
            options = stack.enter_context(_connect_options(settings, "everbatch"))
            server = EmbeddedTemporal(binary, Path(settings.data_dir), temporal_port, ui_port, codec_endpoint=codec_url)
            await stack.enter_async_context(server)
            await stack.enter_async_context(codec_server(settings, codec, server.ui_url))
            client = await connect(server.address, options)
            await _prepare(settings, client)
            ui_url = settings.temporal_ui_url or f"{server.ui_url}/namespaces/{client.namespace}"
            settings = settings.model_copy(update={"temporal_ui_url": ui_url})
            if uses_echo:
                url = await stack.enter_async_context(run_echo_model())
                upstreams = load_upstreams(settings.model_copy(update={"upstream_url": url}))
                click.echo(
                    "No upstream is configured, so a built-in echo model answers. "
                    "Connect a real one with --upstream-url http://127.0.0.1:8001/v1 or EVERBATCH_UPSTREAM_URL."
                )
            inference = await stack.enter_async_context(_inference(settings, upstreams))
            worker = BatchWorker(client, settings, store, inference)
            click.echo(f"Everbatch API  http://{host}:{listener.getsockname()[1]}/v1")
            click.echo(f"Web page       http://{host}:{listener.getsockname()[1]}/")
            click.echo(f"Temporal UI    {server.ui_url}")
            click.echo(f"Data           {settings.data_dir}")
            await _all_until_stop(
                stop,
                _serve_api(settings, client, server.address, store, inference, keys, listener, stop),
                worker.run(stop, stop.at_once),
                _until_stop_or_end(server, stop),
            )


async def _prepare(settings: Settings, client: Client) -> None:
    """Set up the embedded server, as `everbatch setup` does for other Temporal servers."""
    await prepare_namespace(client, retention=settings.retention)
    await prepare_schedule(client, settings.task_queue, timedelta(seconds=settings.janitor_interval))


async def _all_until_stop(stop: asyncio.Event, *parts: Coroutine[None, None, None]) -> None:
    """Run all parts. When one ends, stop the others and wait until they end. Raises the first failure."""
    tasks = [asyncio.create_task(part) for part in parts]
    first, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    # Wait even after a failure: the caller closes what the others need to end cleanly.
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
    inference: Sequence[InferenceClient],
    keys: KeyFile | None,
    listener: socket.socket,
    stop: asyncio.Event,
) -> None:
    upstreams = [proxy.upstream for proxy in inference]
    gateway = TemporalGateway(client, store, settings.task_queue, address, upstreams)
    app = create_app(settings, gateway, store, inference, keys)
    spare_what_has_started()
    serving = [serve(app, listener, stop, settings.max_connections)]
    with contextlib.ExitStack() as stack:
        if address := settings.api_metrics_address:
            metrics = stack.enter_context(listen_on(address, "EVERBATCH_API_METRICS_ADDRESS"))
            serving.append(serve(create_metrics_app(app), metrics, stop))
        await asyncio.gather(*serving)


def _open_store(settings: Settings) -> ObjectStore:
    try:
        store = open_store(settings)
    except ValueError as error:
        raise StartError(str(error)) from error
    threading.Thread(target=log_until_ready, args=(store,), daemon=True).start()
    return store


@contextlib.asynccontextmanager
async def _inference(settings: Settings, upstreams: Sequence[Upstream]) -> AsyncGenerator[list[InferenceClient]]:
    budget = AnswerBudget(settings.max_answers_bytes)
    clients = [InferenceClient(upstream, budget) for upstream in upstreams]
    looking = asyncio.create_task(log_upstreams(clients))  # in the background
    try:
        yield clients
    finally:
        looking.cancel()
        for client in clients:
            await client.close()


@contextlib.contextmanager
def _connect_options(settings: Settings, service: str) -> Generator[ConnectOptions]:
    """Yield the options of the connection to Temporal. Args: ``service`` is the name of this process in traces."""
    try:
        with tracing(service) as interceptors:
            yield ConnectOptions(_runtime(settings), data_converter(settings.payload_keys), interceptors)
    except TracingMissingError as error:
        raise StartError(str(error)) from error


def _runtime(settings: Settings) -> Runtime:
    try:
        runtime = make_runtime(settings.metrics_address)
    except (RuntimeError, ValueError) as error:
        raise StartError(f"EVERBATCH_METRICS_ADDRESS={settings.metrics_address}: {error}") from error
    Runtime.set_default(runtime, error_if_already_set=False)  # also for connections without one, for their logs
    return runtime
