"""Worker deployments, which decide on which version new batches start."""

from __future__ import annotations

from typing import Final

from temporalio.api.enums.v1 import WorkerDeploymentVersionStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode


class NotPromotedError(Exception):
    """Temporal does not accept a version as the current one, or does not accept it yet; the message says why."""


_MISSING_QUEUES: Final = "missing active task queues"


async def promote(client: Client, deployment: str, build_id: str, *, force: bool = False) -> None:
    """Make a version the current one, on which new batches start; running batches end on their version. Idempotent.

    Args: ``force`` promotes it even if it does not serve a task queue that the current version serves.

    Raises:
        NotPromotedError: no worker of the version polls yet, or none polls a task queue in which tasks wait, such as
            the queue of an upstream that the version does not have.
        RPCError: Temporal refuses or does not answer.
    """
    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace,
        deployment_name=deployment,
        build_id=build_id,
        identity="everbatch promote",
        ignore_missing_task_queues=force,
    )
    try:
        await client.workflow_service.set_worker_deployment_current_version(request)
    except RPCError as error:
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION):
            why = str(error)
            if _MISSING_QUEUES in why:
                why = (
                    "batches wait, or waited recently, for an upstream that the workers of this version do not have; "
                    "or these workers have only just started; use --force to promote it anyway"
                )
            raise NotPromotedError(f"{deployment}/{build_id}: {why}") from error
        raise


async def versions(client: Client, deployment: str) -> dict[str, str]:
    """Return the status of each known version by build id; empty if there is no such deployment."""
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
