"""Whether Temporal can currently create and run batches.

What Temporal itself reports is late: it knows when a worker last began a poll, and a poll lasts up to a minute. With a
full database it still answers reads. So a probe workflow is started, which a worker has to end, and is then deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from datetime import timedelta
from typing import Final

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowFailureError

from api.gateway.workflow_reader import UNANSWERED
from workflows.contract import READY_WORKFLOW

KEPT_SECONDS: Final = 3.0
"""Time in seconds for which an answer is reused for all callers."""
CALL_SECONDS: Final = 2.0
WORKER_SECONDS: Final = 3.0
"""Time limit for a worker to end the probe. A worker that began a poll within this time is present, however busy."""
SETTLED_SECONDS: Final = 5.0
"""Time in seconds between the end of a probe and the deletion of its workflow."""
_LEFT_OVER: Final = timedelta(seconds=30)
"""Lifetime of a probe workflow, after which Temporal ends it if it was not deleted."""


class CannotWriteError(Exception):
    """Temporal answers, but accepts no new workflows."""


class Readiness:
    """Probes Temporal at most once every :data:`KEPT_SECONDS`, however many callers ask."""

    def __init__(self, client: Client, task_queue: str) -> None:
        self._client = client
        self._task_queue = task_queue
        self._probing = asyncio.Lock()
        self._probed_at = float("-inf")
        self._has_worker = False
        self._deleting: set[asyncio.Task[None]] = set()

    async def has_worker(self) -> bool:
        """Return whether a worker takes workflows from the task queue.

        Raises:
            CannotWriteError: Temporal answers reads, but accepts no new workflows.
            TimeoutError, RPCError, RuntimeError: Temporal does not answer.
        """
        async with self._probing:
            if time.monotonic() - self._probed_at >= KEPT_SECONDS:  # not SharedLooks: a probe may take as long
                self._has_worker = await self._probe()
                self._probed_at = time.monotonic()
            return self._has_worker

    async def _probe(self) -> bool:
        polled = await self.was_polled()
        name = f"ready_{uuid.uuid4().hex}"
        # Without the interceptors of the other client, which would record a trace for each probe.
        client = Client(self._client.service_client, namespace=self._client.namespace)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await client.start_workflow(
                    READY_WORKFLOW, id=name, task_queue=self._task_queue, execution_timeout=_LEFT_OVER
                )
        except UNANSWERED as error:
            raise CannotWriteError(str(error)) from error
        try:
            return polled or await self._is_ended(name)
        finally:
            task = asyncio.create_task(self._delete(name))
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    async def was_polled(self) -> bool:
        """Return whether a worker began a poll within :data:`WORKER_SECONDS`, as a busy worker does all the time.

        Raises the errors of :meth:`last_poll`.
        """
        polled_at = await self.last_poll()
        return polled_at is not None and polled_at > time.time() - WORKER_SECONDS

    async def last_poll(self) -> float | None:
        """Return the Unix time at which a worker last began a poll, or ``None`` if Temporal knows of no worker.

        A poll lasts up to a minute.

        Raises:
            TimeoutError, RPCError, RuntimeError: Temporal does not answer.
        """
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=self._task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        async with asyncio.timeout(CALL_SECONDS):
            answer = await self._client.workflow_service.describe_task_queue(request)
        return max((poller.last_access_time.ToNanoseconds() / 1e9 for poller in answer.pollers), default=None)

    async def _is_ended(self, name: str) -> bool:
        try:
            async with asyncio.timeout(WORKER_SECONDS):
                await self._client.get_workflow_handle(name).result()
        except TimeoutError:
            return False
        except WorkflowFailureError:
            return True  # however it ended, a worker ran it
        return True

    async def _delete(self, name: str) -> None:
        request = DeleteWorkflowExecutionRequest(
            namespace=self._client.namespace, workflow_execution=WorkflowExecution(workflow_id=name)
        )
        # Not at once: a worker may still be running it, and Temporal's visibility may add it after the deletion.
        await asyncio.sleep(SETTLED_SECONDS)
        with contextlib.suppress(*UNANSWERED):
            async with asyncio.timeout(CALL_SECONDS):
                await self._client.workflow_service.delete_workflow_execution(request)
