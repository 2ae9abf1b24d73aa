"""Temporal's sandbox takes the workflow, without a server."""

from __future__ import annotations

import pytest
from temporalio import workflow
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from workflows.batch import BatchWorkflow
from workflows.janitor import JanitorWorkflow
from workflows.ready import ReadyWorkflow
from workflows.webhook import WebhookWorkflow


def prepare(workflow_class: type) -> None:
    definition = workflow._Definition.must_from_class(workflow_class)
    SandboxedWorkflowRunner().prepare_workflow(definition)


@pytest.mark.parametrize("workflow_class", [BatchWorkflow, JanitorWorkflow, WebhookWorkflow, ReadyWorkflow])
async def test_the_workflow_prepares(workflow_class: type) -> None:
    prepare(workflow_class)
