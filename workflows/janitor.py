"""The janitor's workflow, run by a Temporal Schedule: it deletes expired objects and what crashes have left behind."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import contract
    from workflows.details import janitor_details
    from workflows.types import DeleteExpiredInput, DeleteExpiredResult

MAX_PASSES = 100
"""Maximum number of activities that one run of the workflow executes. The next run continues after them."""


@workflow.defn(name=contract.JANITOR_WORKFLOW)
class JanitorWorkflow:
    @workflow.run
    async def run(self, task: DeleteExpiredInput) -> DeleteExpiredResult:
        """Return the sum of the results of all passes."""
        done = DeleteExpiredResult(more=True)
        for number in range(1, MAX_PASSES + 1):
            done += await workflow.execute_activity_method(
                contract.DeleteExpiredStub.delete_expired,
                task,
                task_queue=contract.control_task_queue(workflow.info().task_queue),
                start_to_close_timeout=contract.DELETE_TIMEOUT,
                heartbeat_timeout=timedelta(seconds=30),
                retry_policy=contract.STEP_RETRY,
                summary=f"up to {task.limit} objects, pass {number}",
            )
            workflow.set_current_details(janitor_details(done))
            if not done.more:
                break
        return done
