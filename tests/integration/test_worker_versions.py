"""Workers of several versions beside each other."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import Worker

from activities.temporal.deployment import NotPromotedError, promote, versions
from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, requests, until
from workflows import contract
from workflows.types import BatchSpec, BatchStatus


@workflow.defn(name=contract.BATCH_WORKFLOW, sandboxed=False)
class AnotherShape:
    """A batch workflow of other code: its first step is another one."""

    @workflow.run
    async def run(self, spec: BatchSpec) -> BatchStatus:
        await workflow.sleep(timedelta(hours=1))
        return BatchStatus()


@contextlib.asynccontextmanager
async def deployed(before: Stack, build_id: str, **changes: Any) -> AsyncGenerator[Stack]:
    """A worker of another version, over the same store and task queue. Args: ``changes`` are settings."""
    settings = before.settings.model_copy(update={"build_id": build_id, **changes})
    # The SDK refuses two workers of one task queue over one connection; in production each is a process.
    temporal = await Client.connect(
        before.temporal.service_client.config.target_host, data_converter=before.temporal.data_converter
    )
    async with Stack.open(temporal, Path(settings.store), **settings.model_dump(exclude_unset=True)) as after:
        await after.start_worker()
        yield after


async def test_code_that_does_not_know_a_running_batch_does_not_break_it(stack: MakeStack) -> None:
    it = await stack(latency=0.3)
    it.script(mode="hang", match="r-2")
    batch_id = await it.submit(requests(3))
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 2)
    await it.stop_worker()
    another = Worker(
        it.temporal,
        task_queue=it.settings.task_queue,
        workflows=[AnotherShape],
        max_cached_workflows=0,
        build_id="another",  # the default takes seconds to compute
    )
    async with another:
        await it.openai.post(f"/batches/{batch_id}/pause", cast_to=object)

        async def refused() -> bool:
            history = await it.workflow(batch_id).fetch_history()
            return history.events[-1].event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED

        await until(refused, "a failed workflow task")
        description = await it.workflow(batch_id).describe()
        assert description.status is WorkflowExecutionStatus.RUNNING
        assert (await it.get(batch_id)).status == "in_progress"
    it.script()
    await it.start_worker()
    await it.openai.post(f"/batches/{batch_id}/resume", cast_to=object)
    assert (await it.finished(batch_id)).counts == (3, 3, 0)


async def test_a_batch_ends_on_the_version_that_it_began_on(stack: MakeStack) -> None:
    name = f"everbatch-{uuid.uuid4().hex[:8]}"
    old = await stack(deployment=name, build_id="one", worker=False)
    with pytest.raises(NotPromotedError):
        await promote(old.temporal, name, "one")
    await old.start_worker()
    await until(lambda: promoted(old.temporal, name, "one"), "the first version")
    old.script(mode="hang", match="first-1")
    first = await old.submit(requests(2, prefix="first"))
    await old.until(first, lambda batch: batch.request_counts and batch.request_counts.completed == 1)
    async with deployed(old, "two") as new:
        await until(lambda: promoted(new.temporal, name, "two"), "the second version")
        second = await new.run(requests(2, prefix="second"))
        assert second.counts == (2, 2, 0)
        old.script()
        await old.openai.post(f"/batches/{first}/pause", cast_to=object)
        await old.openai.post(f"/batches/{first}/resume", cast_to=object)
        await old.openai.batches.cancel(first)
        assert (await old.finished(first)).batch.status == "cancelled"
        assert await version_of(old, first) == "one"
        assert await version_of(new, second.batch.id) == "two"
        states = await versions(old.temporal, name)
        assert states["two"] == "current"
        assert states["one"] in ("draining", "drained")


async def promoted(client: Client, deployment: str, build_id: str) -> bool:
    try:
        await promote(client, deployment, build_id)
    except NotPromotedError:
        return False
    return True


async def version_of(it: Stack, batch_id: str) -> str:
    description = await it.workflow(batch_id).describe()
    return description.raw_description.workflow_execution_info.versioning_info.deployment_version.build_id
