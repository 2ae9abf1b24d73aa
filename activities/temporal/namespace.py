"""Checks and prepares the Temporal namespace in which batches run."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    RegisterNamespaceRequest,
    UpdateNamespaceRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from workflows.contract import ENDPOINT_ATTRIBUTE, STATUS_ATTRIBUTE, TENANT_ATTRIBUTE

SEARCH_ATTRIBUTES: Final = [key.name for key in (TENANT_ATTRIBUTE, ENDPOINT_ATTRIBUTE, STATUS_ATTRIBUTE)]

_USABLE_SECONDS = 30.0


class NotSetUpError(RuntimeError):
    """The namespace lacks something that `everbatch setup` creates; the message says what."""


async def check_namespace(client: Client) -> bool:
    """Return ``True`` if the namespace exists with the search attributes of batches, or if this client may not see it.

    The check needs no permission but that to list workflows.

    Raises:
        NotSetUpError: the namespace does not exist or lacks search attributes.
        RPCError: Temporal does not answer.
    """
    try:
        if await _queryable(client, SEARCH_ATTRIBUTES):
            return True
    except RPCError as error:
        if error.status is RPCStatusCode.PERMISSION_DENIED:
            return True  # this cannot be checked; later calls will show what this client may do
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        raise NotSetUpError(f"namespace {client.namespace} does not exist: run `everbatch setup`") from error
    names = ", ".join(SEARCH_ATTRIBUTES)
    raise NotSetUpError(f"namespace {client.namespace} lacks the search attributes {names}: run `everbatch setup`")


async def prepare_namespace(client: Client, *, retention: timedelta | None = None) -> None:
    """Run :func:`ensure_namespace`, unless ``retention`` is ``None``, and :func:`ensure_search_attributes`."""
    if retention is not None:
        await ensure_namespace(client, retention)
    await ensure_search_attributes(client)


async def ensure_namespace(client: Client, retention: timedelta) -> None:
    """Create the namespace if it does not exist, and set for how long it retains closed workflows.

    Idempotent, also while another process does the same. All servers know a new namespace only some seconds later.

    Raises:
        RPCError: Temporal refuses, for example because of a missing permission.
    """
    wanted = Duration()
    wanted.FromTimedelta(retention)
    if not await _is_there(client, wanted):
        request = RegisterNamespaceRequest(
            namespace=client.namespace, description="Batches of Everbatch", workflow_execution_retention_period=wanted
        )
        try:
            await client.workflow_service.register_namespace(request, retry=True)
        except RPCError as error:
            if error.status is not RPCStatusCode.ALREADY_EXISTS:
                raise
            await _is_there(client, wanted)


async def ensure_search_attributes(client: Client) -> None:
    """Add the search attributes of batches, and wait until they can be used.

    Idempotent, also while another process does the same.

    Raises:
        RPCError: Temporal refuses, for example because of a missing permission.
        RuntimeError: an attribute with the same name has another type.
        TimeoutError: the attributes were added but do not appear, or the namespace does not appear.
    """
    deadline = time.monotonic() + _USABLE_SECONDS
    while not await _has_attributes(client):
        if time.monotonic() > deadline:
            names = ", ".join(SEARCH_ATTRIBUTES)
            raise TimeoutError(f"search attributes {names} do not appear in namespace {client.namespace}")
        await asyncio.sleep(0.1)


async def _is_there(client: Client, retention: Duration) -> bool:
    """Return whether the namespace exists. If it does, it has this retention afterwards."""
    try:
        current = await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=client.namespace), retry=True
        )
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    if current.config.workflow_execution_retention_ttl != retention:
        request = UpdateNamespaceRequest(
            namespace=client.namespace, config=NamespaceConfig(workflow_execution_retention_ttl=retention)
        )
        await client.workflow_service.update_namespace(request, retry=True)
    return True


async def _has_attributes(client: Client) -> bool:
    """Add the missing attributes. Returns whether none was missing and all can be used."""
    try:
        # List them first: in many clusters only administrators may add attributes, and they have already done so.
        if missing := await _missing(client, SEARCH_ATTRIBUTES):
            await _add(client, missing)
            return False
        return await _queryable(client, SEARCH_ATTRIBUTES)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False  # the namespace is new
        raise


async def _missing(client: Client, names: list[str]) -> list[str]:
    answer = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace), retry=True
    )
    present = answer.custom_attributes
    for name in names:
        if name in present and present[name] != IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD:
            raise RuntimeError(
                f"search attribute {name} of namespace {client.namespace} is "
                f"{IndexedValueType.Name(present[name])}, but Everbatch needs a keyword"
            )
    return [name for name in names if name not in present]


async def _add(client: Client, names: list[str]) -> None:
    # One at a time: a request for several adds none of them if one already exists.
    for name in names:
        request = AddSearchAttributesRequest(
            namespace=client.namespace, search_attributes={name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD}
        )
        try:
            await client.operator_service.add_search_attributes(request, retry=True)
        except RPCError as error:
            if error.status is not RPCStatusCode.ALREADY_EXISTS:
                raise


async def _queryable(client: Client, names: list[str]) -> bool:
    """Return whether queries can use the attributes.

    Listing them is not enough: it reads the database, but starts and queries use a cache that is updated later.
    """
    try:
        await client.count_workflows(" AND ".join(f"{name} = 'none'" for name in names))
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            return False
        raise
    return True
