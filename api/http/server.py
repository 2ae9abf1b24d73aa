"""Runs an ASGI application inside a running event loop, on a socket of its own, until it is stopped."""

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
"""For answers under way when the server stops."""
MAX_CONNECTIONS: Final = 1000
OTHER_DESCRIPTORS: Final = 200
"""Reserved for other descriptors than client connections: files, Temporal, upstreams."""


class PortTakenError(Exception):
    """The address cannot be listened on; the message says why, for the user."""


def listen(host: str, port: int, advice: str = "; choose another with --port") -> socket.socket:
    """A listening socket; the port 0 means any free one. Args: ``advice`` is for a user whose port is taken.

    Raises:
        PortTakenError: the port or the host cannot be had.
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
    # Accepted sockets have it from here. Asyncio sets it on sockets of an explicit protocol alone, and without it the
    # second piece of an answer waits 40 ms for the client's acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def listen_on(address: str, setting: str) -> socket.socket:
    """A listening socket at ``host:port``, as the setting of that name has it.

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
    """Serve until ``stop`` is set, then let answers under way end."""
    asyncio.get_running_loop().set_exception_handler(OutOfDescriptors())
    config = uvicorn.Config(
        _ending_quietly(app),
        http=cast("Any", functools.partial(Connection, min(max_connections, _room_for_connections()))),
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


def _room_for_connections() -> int:
    """Connections that the limit of open files leaves room for, once it is as high as it may be."""
    soft = raise_open_files()
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(soft - OTHER_DESCRIPTORS, soft // 2)


def raise_open_files() -> int:
    """Let this process open as many files and connections as it may; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems refuse what they call the limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft


def _ending_quietly(app: ASGIApp) -> ASGIApp:
    """An application that uvicorn may cancel when it stops, without an error in the log for each request."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the task is uvicorn's, and ends here
            await app(scope, receive, send)

    return run


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # they belong to the program around it
