"""Serves an ASGI application in a running event loop, on a socket of its own, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import resource
import socket
import sys
from collections.abc import Generator
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.connections import IDLE_SECONDS, Connection, OutOfDescriptors

GRACE_SECONDS = 5
"""Time limit in seconds for responses that are in progress when the server stops."""
MAX_CONNECTIONS: Final = 1000
OTHER_DESCRIPTORS: Final = 200
"""Number of file descriptors reserved for anything but client connections: files, Temporal, upstreams."""


class PortTakenError(Exception):
    """The server cannot listen on the address. The message tells the user why."""


def listen(host: str, port: int, advice: str = "; choose another with --port") -> socket.socket:
    """Return a listening socket. Port 0 means any free port. Args: ``advice`` ends the message if the port is in use.

    Raises:
        PortTakenError: the port is in use, or the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is already in use{advice}"
        else:
            message = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise PortTakenError(message) from error
    # Accepted sockets inherit this option. Asyncio sets it only on sockets with an explicit protocol, and without it,
    # the second piece of a response waits 40 ms for the client's acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def listen_on(address: str, setting: str) -> socket.socket:
    """Return a listening socket for ``address`` (``host:port``), which is the value of ``setting``.

    Raises:
        PortTakenError: the address is invalid or already in use.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise PortTakenError(f"{setting}={address} is not host:port, for example 127.0.0.1:8081")
    try:
        return listen(host.strip("[]"), int(port), advice="")
    except PortTakenError as error:
        raise PortTakenError(f"{setting}={address}: {error}") from error


async def serve(
    app: ASGIApp, listener: socket.socket, stop: asyncio.Event, max_connections: int = MAX_CONNECTIONS
) -> None:
    """Serve until ``stop`` is set, then let responses in progress finish within :data:`GRACE_SECONDS`."""
    asyncio.get_running_loop().set_exception_handler(OutOfDescriptors())
    config = uvicorn.Config(
        _ending_quietly(app),
        http=cast("Any", functools.partial(Connection, min(max_connections, _allowed_connections()))),
        timeout_keep_alive=IDLE_SECONDS,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config)

    async def stop_on_request() -> None:
        await stop.wait()
        server.should_exit = True

    ending = asyncio.create_task(stop_on_request())
    try:
        await server.serve(sockets=[listener])
    finally:
        ending.cancel()


def _allowed_connections() -> int:
    """Return the number of connections that the limit of open files allows, after raising it as far as possible."""
    soft = raise_open_files()
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(soft - OTHER_DESCRIPTORS, soft // 2)


def raise_open_files() -> int:
    """Raise this process's limit of open files, which includes connections, as far as possible, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems refuse the limit that they report
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft


def _ending_quietly(app: ASGIApp) -> ASGIApp:
    """Return an application that uvicorn can cancel when it stops without logging an error for each request."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the task belongs to uvicorn and ends here
            await app(scope, receive, send)

    return run


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # signals are handled by the program that runs the server
