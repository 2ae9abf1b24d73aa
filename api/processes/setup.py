"""``everbatch setup`` prepares Temporal and the store; ``everbatch promote`` chooses the version for new batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

import click
from temporalio.client import Client
from temporalio.service import RPCError

from activities.configured import open_store
from activities.settings import Settings
from activities.store.object_store import StoreError
from activities.temporal.connection import ConnectOptions, connect_when_there
from activities.temporal.deployment import NotPromotedError, promote, versions
from activities.temporal.namespace import SEARCH_ATTRIBUTES, ensure_namespace, ensure_search_attributes
from activities.temporal.payload_codec import data_converter
from activities.temporal.schedule import prepare_schedule
from activities.worker_options import BUILD_ID
from api.processes.run import StartError, stop_on_signals

log = logging.getLogger("everbatch.setup")

STORE_TRIES = 30
"""Number of attempts to reach the store, one second apart, before setup fails. The store may be starting too."""


async def run_setup(settings: Settings) -> None:
    """Wait for Temporal, then create whatever is missing. All steps are tried, even if one fails.

    Raises:
        StartError: a step failed, or a signal arrived before Temporal was available.
    """
    with stop_on_signals() as stop:
        client = await _connected(settings, stop)
        steps = _steps(settings, client)
        failed = [what for what, step in steps.items() if not await _done(what, step)]
        if failed:
            raise StartError(f"not set up: {', '.join(failed)}")


async def _connected(settings: Settings, stop: asyncio.Event) -> Client:
    try:
        client = await connect_when_there(stop, ConnectOptions(converter=data_converter(settings.payload_keys)))
    except ValueError as error:
        raise StartError(str(error)) from error
    if client is None:
        raise StartError("stopped before Temporal was available")
    return client


def _steps(settings: Settings, client: Client) -> dict[str, Callable[[], Awaitable[object]]]:
    attributes = ", ".join(SEARCH_ATTRIBUTES)
    return {
        f"store {settings.store_address}": lambda: _prepare_store(settings),
        f"namespace {client.namespace}, closed workflows kept for {settings.retention_days} days": lambda: (
            ensure_namespace(client, settings.retention)
        ),
        f"search attributes {attributes}": lambda: ensure_search_attributes(client),
        f"janitor, every {settings.janitor_interval} seconds": lambda: prepare_schedule(
            client, settings.task_queue, timedelta(seconds=settings.janitor_interval)
        ),
    }


async def _done(what: str, step: Callable[[], Awaitable[object]]) -> bool:
    try:
        await step()
    except (RPCError, RuntimeError, TimeoutError, ValueError, StoreError) as error:
        log.error("%s: %s", what, " ".join(str(error).split()))
        return False
    click.echo(f"ready: {what}")
    return True


async def _prepare_store(settings: Settings) -> None:
    store = open_store(settings)
    for left in reversed(range(STORE_TRIES)):
        try:
            await asyncio.to_thread(store.check)
            break
        except StoreError as error:
            if not left:
                raise
            if left == STORE_TRIES - 1:
                log.warning("waiting for the store: %s", error)
        await asyncio.sleep(1)


async def run_promote(settings: Settings, build_id: str | None, *, force: bool) -> None:
    """Make new batches run on a version of the workers' code. ``build_id`` defaults to the configured or installed one.

    Raises:
        StartError: the version does not exist, is not ready to take over, or is refused by Temporal.
    """
    build_id = build_id or settings.build_id or BUILD_ID
    if not settings.deployment:
        raise StartError("EVERBATCH_DEPLOYMENT is not set: the workers have no versions")
    with stop_on_signals() as stop:
        client = await _connected(settings, stop)
        try:
            await promote(client, settings.deployment, build_id, force=force)
        except NotPromotedError as error:
            raise StartError(f"{error}; known: {await _known_versions(client, settings.deployment)}") from error
        except RPCError as error:
            raise StartError(f"{settings.deployment}/{build_id}: {error}") from error
        click.echo(f"new batches start on {settings.deployment}/{build_id}")


async def _known_versions(client: Client, deployment: str) -> str:
    """Return a list of the known versions and their states, for an error message."""
    try:
        known = await versions(client, deployment)
    except RPCError as error:
        return f"unknown, {error}"
    return ", ".join(f"{name} ({state})" for name, state in known.items()) or "none"
