"""Temporal's sandbox takes the workflow, without a server."""

from __future__ import annotations

from temporalio import workflow
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from workflows.batch import BatchWorkflow


def prepare(workflow_class: type) -> None:
    definition = workflow._Definition.must_from_class(workflow_class)
    SandboxedWorkflowRunner().prepare_workflow(definition)


async def test_the_batch_workflow_prepares() -> None:
    prepare(BatchWorkflow)
