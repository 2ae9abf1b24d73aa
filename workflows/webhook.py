"""The workflow that calls a tenant's webhooks when a batch has ended."""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from workflows import contract
    from workflows.webhook_types import DeliverWebhookInput, DeliverWebhookResult, WebhookInput, WebhookResult


@workflow.defn(name=contract.WEBHOOK_WORKFLOW)
class WebhookWorkflow:
    @workflow.run
    async def run(self, task: WebhookInput) -> WebhookResult:
        """Return once each endpoint has accepted the event or does not subscribe to its type.

        Raises:
            ApplicationError: some endpoints did not accept the event within 72 hours, or their address is not allowed.
        """
        results = await asyncio.gather(*(self._deliver(task, endpoint) for endpoint in task.endpoints))
        failed = [endpoint for endpoint, result in zip(task.endpoints, results, strict=True) if result is None]
        if failed:
            raise ApplicationError(f"not delivered: {', '.join(failed)}", type="NotDelivered")
        return WebhookResult(delivered=sum(result.delivered for result in results if result))

    async def _deliver(self, task: WebhookInput, endpoint: str) -> DeliverWebhookResult | None:
        try:
            return await workflow.execute_activity_method(
                contract.DeliverWebhookStub.deliver_webhook,
                DeliverWebhookInput(
                    endpoint=endpoint,
                    tenant=task.tenant,
                    batch_id=task.batch_id,
                    event=task.event,
                    created_at=task.created_at,
                ),
                task_queue=contract.webhook_task_queue(workflow.info().task_queue),
                activity_id=f"deliver-{endpoint}",
                start_to_close_timeout=contract.DELIVER_TIMEOUT,
                schedule_to_close_timeout=contract.DELIVER_WITHIN,
                retry_policy=contract.DELIVER_RETRY,
                summary=f"{endpoint}: {task.event}",
                priority=Priority(fairness_key=endpoint),
            )
        except ActivityError:
            return None
