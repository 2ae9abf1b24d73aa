"""Make a Temporal namespace ready for batches: its search attributes and, where asked, its retention."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, UpdateNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from workflows.contract import ENDPOINT_ATTRIBUTE, STATUS_ATTRIBUTE, TENANT_ATTRIBUTE

_USABLE_SECONDS = 30.0


async def prepare_namespace(client: Client, *, retention: timedelta | None = None) -> None:
    """Add the search attributes that batches carry and wait until they can be used; set the retention when given.

    Idempotent, also while another process does the same.

    Raises:
        RPCError: Temporal refuses, for example for want of permission.
        RuntimeError: an attribute of that name has another type.
        TimeoutError: the attributes were added but do not appear.
    """
    names = [key.name for key in (TENANT_ATTRIBUTE, ENDPOINT_ATTRIBUTE, STATUS_ATTRIBUTE)]
    # Asked first, because in many clusters only administrators may add attributes and have done so.
    if missing := await _missing(client, names):
        await _add(client, missing)
    deadline = time.monotonic() + _USABLE_SECONDS
    while await _missing(client, names) or not await _queryable(client, names):
        if time.monotonic() > deadline:
            raise TimeoutError(f"search attributes {', '.join(names)} do not appear in namespace {client.namespace}")
        await asyncio.sleep(0.1)
    if retention is not None:
        await _set_retention(client, retention)


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
    # One by one: where one exists already, a joint request would add none.
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
    """The list reads the database; starts and queries go by a cache that follows a little later."""
    try:
        await client.count_workflows(" AND ".join(f"{name} = 'none'" for name in names))
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            return False
        raise
    return True


async def _set_retention(client: Client, retention: timedelta) -> None:
    current = await client.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace=client.namespace), retry=True
    )
    wanted = Duration()
    wanted.FromTimedelta(retention)
    if current.config.workflow_execution_retention_ttl == wanted:
        return
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=client.namespace, config=NamespaceConfig(workflow_execution_retention_ttl=wanted)
        ),
        retry=True,
    )
