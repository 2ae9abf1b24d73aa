"""The workflow with which the API checks that batches can run. A worker that is up completes it immediately."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import contract


@workflow.defn(name=contract.READY_WORKFLOW)
class ReadyWorkflow:
    @workflow.run
    async def run(self) -> None:
        """Do nothing. That the workflow completes shows that a worker runs."""
