"""Connections to Temporal, configured by the SDK's own environment variables and profiles."""

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
    """Options that all clients of a process share."""

    runtime: Runtime | None = None
    converter: DataConverter = pydantic_data_converter
    interceptors: Sequence[Interceptor] = ()


def temporal_address() -> str:
    """Return the address of Temporal from the SDK's own environment variables and profiles.

    Raises:
        ValueError: the configuration cannot be read.
    """
    return _configuration().get("target_host") or DEFAULT_TEMPORAL_ADDRESS


def _configuration() -> ClientConnectConfig:
    try:
        return ClientConfig.load_client_connect_config()
    except (RuntimeError, OSError) as error:  # callers retry the RuntimeError of a connection, but must not retry this
        reason = " ".join(str(error).split())
        raise ValueError(f"the configuration of Temporal (TEMPORAL_* or its file): {reason}") from error


async def connect(
    address: str | None = None, options: ConnectOptions = ConnectOptions(), *, lazy: bool = False
) -> Client:
    """Connect to the server at ``address``, or to the one that the SDK's environment variables and profiles name.

    Raises:
        RuntimeError: Temporal cannot be reached (unless ``lazy``).
        ValueError: the address or the SDK's configuration is not valid.
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
    """Connect to Temporal as soon as it can be reached, and log the wait. Returns ``None`` if ``stop`` is set first.

    Raises:
        ValueError: the address or the SDK's configuration is not valid.
    """
    return await when_there(lambda: connect(options=options), stop)


async def when_there(ask: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T | None:
    """Call ``ask`` every second until Temporal answers, and return the answer, or ``None`` if ``stop`` is set first.

    Each new reason why Temporal does not answer is logged.
    """
    said = ""
    while not stop.is_set():
        try:
            answer = await ask()
            if said:
                log.warning("connected to Temporal at %s", temporal_address())
            return answer
        except (RuntimeError, RPCError) as error:
            reason = " ".join(str(error).split())[:REASON_LENGTH]
            if reason != said:  # for example, Temporal may be down at first, and then refuse the API key
                log.warning("waiting for Temporal at %s: %s", temporal_address(), reason)
                said = reason
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), CONNECT_RETRY_SECONDS)
    return None
