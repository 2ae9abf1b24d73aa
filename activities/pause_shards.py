"""The activity that pauses and resumes a batch's shards, with Temporal's pausing of activities.

Pausing adds no history events and is visible in the Temporal UI. Running shards learn of it with their next heartbeat
and return the requests that they have not sent; waiting shards are not dispatched.
"""

from __future__ import annotations

from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import PauseActivityRequest, UnpauseActivityRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from workflows.contract import PAUSE_SHARDS, RUN_REQUESTS, PauseShardsStub
from workflows.types import PauseShardsInput


class PauseShards(PauseShardsStub):
    def __init__(self, client: Client) -> None:
        self._client = client

    @activity.defn(name=PAUSE_SHARDS)
    async def pause_shards(self, task: PauseShardsInput) -> None:
        service, namespace = self._client.workflow_service, self._client.namespace
        execution = WorkflowExecution(workflow_id=task.batch_id, run_id=activity.info().workflow_run_id or "")
        try:
            if task.paused:
                await service.pause_activity(
                    PauseActivityRequest(
                        namespace=namespace,
                        execution=execution,
                        identity=self._client.identity,
                        type=RUN_REQUESTS,
                        reason="the batch is paused",
                    )
                )
            else:
                await service.unpause_activity(
                    UnpauseActivityRequest(
                        namespace=namespace, execution=execution, identity=self._client.identity, type=RUN_REQUESTS
                    )
                )
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            # No shard is pending, or none is pending yet: the workflow itself holds back later shards.
