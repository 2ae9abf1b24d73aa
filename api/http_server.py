"""Runs an ASGI application inside a running event loop, on a socket of its own, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

GRACE_SECONDS = 5
"""For answers under way when the server stops."""


class PortTaken(Exception):
    """The address cannot be listened on; the message says why, for the user."""


def listen(host: str, port: int, advice: str = "; choose another with --port") -> socket.socket:
    """A listening socket; the port 0 means any free one. Args: ``advice`` is for a user whose port is taken.

    Raises:
        PortTaken: the port or the host cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is taken{advice}"
        else:
            message = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise PortTaken(message) from error


def listen_on(address: str, setting: str) -> socket.socket:
    """A listening socket at ``host:port``, as the setting of that name has it.

    Raises:
        PortTaken: it is no such address, or cannot be had.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise PortTaken(f"{setting}={address} is not host:port, for example 127.0.0.1:8081")
    try:
        return listen(host.strip("[]"), int(port), advice="")
    except PortTaken as error:
        raise PortTaken(f"{setting}={address}: {error}") from error


async def serve(app: ASGIApp, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set, then let answers under way end."""
    config = uvicorn.Config(
        _ending_quietly(app),
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config)

    async def end_when_told() -> None:
        await stop.wait()
        server.should_exit = True

    ending = asyncio.create_task(end_when_told())
    try:
        await server.serve(sockets=[listener])
    finally:
        ending.cancel()


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
