"""Connections to Temporal, found by the SDK's own environment variables and profiles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from temporalio.client import Client, Interceptor
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import Runtime
from temporalio.service import RPCError

log = logging.getLogger("everbatch")

T = TypeVar("T")

DEFAULT_TEMPORAL_ADDRESS: Final = "localhost:7233"
CONNECT_RETRY_SECONDS: Final = 1.0
REASON_LENGTH: Final = 300


@dataclass(frozen=True)
class ConnectOptions:
    """What all clients of one process share."""

    runtime: Runtime | None = None
    converter: DataConverter = pydantic_data_converter
    interceptors: Sequence[Interceptor] = ()


def temporal_address() -> str:
    """Where Temporal is, by the SDK's own environment variables and profiles.

    Raises:
        ValueError: they cannot be read.
    """
    return _configuration().get("target_host") or DEFAULT_TEMPORAL_ADDRESS


def _configuration() -> ClientConnectConfig:
    try:
        return ClientConfig.load_client_connect_config()
    except (RuntimeError, OSError) as error:  # not to be waited out, as a RuntimeError of a connection is
        reason = " ".join(str(error).split())
        raise ValueError(f"the configuration of Temporal (TEMPORAL_* or its file): {reason}") from error


async def connect(
    address: str | None = None, options: ConnectOptions = ConnectOptions(), *, lazy: bool = False
) -> Client:
    """A client of the server at ``address``, or else by the SDK's own environment variables and profiles.

    Raises:
        RuntimeError: Temporal cannot be reached (unless ``lazy``).
        ValueError: its address, or the SDK's configuration, is not valid.
    """
    config: ClientConnectConfig = {} if address else _configuration()
    config["target_host"] = target = address or config.get("target_host") or DEFAULT_TEMPORAL_ADDRESS
    try:
        return await Client.connect(
            **config,
            data_converter=options.converter,
            interceptors=options.interceptors,
            runtime=options.runtime,
            lazy=lazy,
        )
    except ValueError as error:
        raise ValueError(f"TEMPORAL_ADDRESS={target}: {error}") from error


async def connect_when_there(stop: asyncio.Event, options: ConnectOptions = ConnectOptions()) -> Client | None:
    """Wait for Temporal, saying so, and connect; ``None`` if ``stop`` is set before.

    Raises:
        ValueError: its address, or the SDK's configuration, is not valid.
    """
    return await when_there(lambda: connect(options=options), stop)


async def when_there(ask: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T | None:
    """What Temporal answers once it does, saying meanwhile why it does not; ``None`` if ``stop`` is set before."""
    said = ""
    while not stop.is_set():
        try:
            answer = await ask()
            if said:
                log.warning("connected to Temporal at %s", temporal_address())
            return answer
        except (RuntimeError, RPCError) as error:
            reason = " ".join(str(error).split())[:REASON_LENGTH]
            if reason != said:  # it may be away at first, and then refuse our key
                log.warning("waiting for Temporal at %s: %s", temporal_address(), reason)
                said = reason
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), CONNECT_RETRY_SECONDS)
    return None
