"""Worker versions on deploy: which of them gets new batches."""

from __future__ import annotations

from temporalio.api.enums.v1 import WorkerDeploymentVersionStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode


class NoSuchVersion(Exception):
    """No worker of that version has been seen."""


async def promote(client: Client, deployment: str, build_id: str) -> None:
    """Let new batches run on a version; those under way end on theirs. Doing it again changes nothing.

    Raises:
        NoSuchVersion: no worker of it polls yet.
        RPCError: Temporal refuses or does not answer.
    """
    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace, deployment_name=deployment, build_id=build_id, identity="everbatch promote"
    )
    try:
        await client.workflow_service.set_worker_deployment_current_version(request)
    except RPCError as error:
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION):
            raise NoSuchVersion(f"{deployment}/{build_id}: {error}") from error
        raise


async def versions(client: Client, deployment: str) -> dict[str, str]:
    """Each known version's state in words; empty where there is no such deployment."""
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=deployment)
    try:
        answer = await client.workflow_service.describe_worker_deployment(request)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return {}
        raise
    return {
        one.deployment_version.build_id: WorkerDeploymentVersionStatus.Name(one.status).rpartition("STATUS_")[2].lower()
        for one in answer.worker_deployment_info.version_summaries
    }
