"""The workflow by which the API learns whether batches can run. A worker ends it immediately."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import contract


@workflow.defn(name=contract.READY_WORKFLOW)
class ReadyWorkflow:
    @workflow.run
    async def run(self) -> None:
        """Nothing is to be done: that it ends is the news."""
