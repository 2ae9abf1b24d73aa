"""Starts, cancels and finds the workflow runs of batches and of their webhooks."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Final, TypeGuard

from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.client import Client
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from workflows import contract
from workflows.details import batch_summary, webhook_summary
from workflows.events import ByTenant
from workflows.ids import webhook_workflow_id
from workflows.types import BatchPhase, BatchRecord, BatchSpec
from workflows.webhook_types import WebhookInput

CALL_LIMIT: Final = timedelta(seconds=5)
"""Timeout of one call, including the SDK's own retries."""


def is_not_found(error: Exception) -> TypeGuard[RPCError]:
    return isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND


def is_unknown(error: Exception) -> bool:
    """Return whether the error means that Temporal does not know the workflow, or that the workflow has closed.

    A missing namespace is also reported as "not found", but is a different error.
    """
    return is_not_found(error) and not any(
        detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details
    )


class BatchRuns:
    """The workflow runs of batches.

    Raises:
        RPCError: from every method, when Temporal refuses or does not answer.
        RuntimeError: from every method, when a lazy client cannot connect.
    """

    def __init__(self, client: Client, task_queue: str) -> None:
        self._client = client
        self._task_queue = task_queue

    async def start(self, spec: BatchSpec, lines: int | None) -> None:
        """Start the run of a batch. Args: ``lines`` is the number of lines of its input, if it is known.

        Raises:
            WorkflowAlreadyStartedError: the batch already has a run, which may have closed.
        """
        await self._client.start_workflow(
            contract.BATCH_WORKFLOW,
            spec,
            id=spec.batch_id,
            task_queue=self._task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            static_summary=batch_summary(spec, lines),
            search_attributes=_attributes(spec, BatchPhase.VALIDATING),
            rpc_timeout=CALL_LIMIT,
        )

    async def start_cancelled(self, spec: BatchSpec) -> None:
        """Start another run, for a batch whose run no longer exists, that is cancelled from its first task on.

        It sends no requests, writes the committed answers into the result files, and closes the batch.
        """
        await self._client.start_workflow(
            contract.BATCH_WORKFLOW,
            spec,
            id=spec.batch_id,
            task_queue=self._task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            start_signal=contract.CANCEL_SIGNAL,
            start_signal_args=["its run was terminated or lost"],
            static_summary="closes a batch whose run was terminated or lost",
            search_attributes=_attributes(spec, BatchPhase.CANCELLING),
            rpc_timeout=CALL_LIMIT,
        )

    async def start_webhooks(self, ended: BatchRecord) -> None:
        """Start the workflow that sends the webhook events of an ended batch. Idempotent."""
        task = WebhookInput.of(ended.spec, ended.status)
        with contextlib.suppress(WorkflowAlreadyStartedError):
            await self._client.start_workflow(
                contract.WEBHOOK_WORKFLOW,
                task,
                id=webhook_workflow_id(ended.spec.batch_id),
                task_queue=self._task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                static_summary=webhook_summary(task),
                rpc_timeout=CALL_LIMIT,
            )

    async def cancel(self, batch_id: str, run_id: str | None = None, by: ByTenant | None = None) -> bool:
        """Ask the run of a batch to stop. Returns whether there was a run that had not closed.

        Args: ``by`` says who asks. A signal carries it, because anybody could set the reason of a cancel request. That
            request lets Temporal know of the cancel while no worker runs, and show the run as cancelled at its end.
        """
        handle = self._client.get_workflow_handle(batch_id, run_id=run_id)
        try:
            if by:
                await handle.signal(contract.CANCEL_SIGNAL, by, rpc_timeout=CALL_LIMIT)
            await handle.cancel(rpc_timeout=CALL_LIMIT)
        except RPCError as error:
            if not is_unknown(error):
                raise
            return False
        return True

    async def is_open(self, batch_id: str) -> bool:
        """Return whether the batch has a run that has not closed."""
        try:
            description = await self._client.get_workflow_handle(batch_id).describe(rpc_timeout=CALL_LIMIT)
        except RPCError as error:
            if not is_unknown(error):
                raise
            return False
        return description.close_time is None

    async def spec(self, batch_id: str) -> BatchSpec | None:
        """Return the specification with which the batch was created, if Temporal still has its history."""
        try:
            async for event in self._client.get_workflow_handle(batch_id).fetch_history_events(page_size=1):
                started = event.workflow_execution_started_event_attributes
                if started.workflow_type.name != contract.BATCH_WORKFLOW:
                    return None
                (spec,) = await self._client.data_converter.decode(started.input.payloads, [BatchSpec])
                return spec
        except RPCError as error:
            if not is_unknown(error):
                raise
        return None


def _attributes(spec: BatchSpec, phase: BatchPhase) -> TypedSearchAttributes:
    return TypedSearchAttributes(
        [
            SearchAttributePair(contract.TENANT_ATTRIBUTE, spec.tenant),
            SearchAttributePair(contract.ENDPOINT_ATTRIBUTE, spec.endpoint),
            SearchAttributePair(contract.STATUS_ATTRIBUTE, phase.value),
        ]
    )
