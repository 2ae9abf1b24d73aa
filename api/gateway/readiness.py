"""Whether Temporal can currently create and run batches.

Temporal's own word comes late: it remembers a worker's last poll, and a poll lasts a minute; and where its database is
full it still reads. So a workflow of no consequence is started, is to be ended by a worker, and is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DescribeTaskQueueRequest,
    StartWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowFailureError

from api.gateway.workflow_reader import UNANSWERED
from workflows.contract import READY_WORKFLOW

KEPT_SECONDS: Final = 3.0
"""How long an answer serves all who ask."""
CALL_SECONDS: Final = 2.0
WORKER_SECONDS: Final = 3.0
"""For a worker to end the workflow. One that began a poll so recently is there too, however busy it is."""
SETTLED_SECONDS: Final = 5.0
"""From the end of the question to the deletion of what it was asked with."""
_LEFT_OVER: Final = timedelta(seconds=30)
"""After which Temporal ends a workflow that nobody has deleted."""


class CannotWriteError(Exception):
    """Temporal answers, but accepts no new workflows."""


class Readiness:
    """Asks at most once every :data:`KEPT_SECONDS`, however many clients ask."""

    def __init__(self, client: Client, task_queue: str) -> None:
        self._client = client
        self._task_queue = task_queue
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._has_worker = False
        self._deleting: set[asyncio.Task[None]] = set()

    async def has_worker(self) -> bool:
        """Whether a worker takes workflows from the task queue.

        Raises:
            CannotWriteError: Temporal reads, but does not write.
            TimeoutError, RPCError, RuntimeError: it does not answer.
        """
        async with self._asking:
            if time.monotonic() - self._asked_at >= KEPT_SECONDS:
                self._has_worker = await self._ask()
                self._asked_at = time.monotonic()
            return self._has_worker

    async def _ask(self) -> bool:
        polled = await self.was_polled()
        name = f"ready_{uuid.uuid4().hex}"
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._start(name)
        except UNANSWERED as error:
            raise CannotWriteError(str(error)) from error
        try:
            return polled or await self._is_ended(name)
        finally:
            task = asyncio.create_task(self._delete(name))
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    async def was_polled(self) -> bool:
        """Whether a worker has begun a poll within :data:`WORKER_SECONDS`, as a busy one does all the time.

        Raises as :meth:`last_poll`.
        """
        polled_at = await self.last_poll()
        return polled_at is not None and polled_at > time.time() - WORKER_SECONDS

    async def last_poll(self) -> float | None:
        """When a worker last began a poll, in Unix seconds; a poll lasts up to a minute. ``None``: no worker is known.

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

    async def _start(self, name: str) -> None:
        lifetime = Duration()
        lifetime.FromTimedelta(_LEFT_OVER)
        # Not by the client's own method: its interceptors would make each a trace.
        await self._client.workflow_service.start_workflow_execution(
            StartWorkflowExecutionRequest(
                namespace=self._client.namespace,
                workflow_id=name,
                workflow_type=WorkflowType(name=READY_WORKFLOW),
                task_queue=TaskQueue(name=self._task_queue),
                workflow_execution_timeout=lifetime,
                request_id=name,
                identity=self._client.identity,
            )
        )

    async def _is_ended(self, name: str) -> bool:
        try:
            async with asyncio.timeout(WORKER_SECONDS):
                await self._client.get_workflow_handle(name).result()
        except TimeoutError:
            return False
        except WorkflowFailureError:
            return True  # by whatever way, a worker was there
        return True

    async def _delete(self, name: str) -> None:
        request = DeleteWorkflowExecutionRequest(
            namespace=self._client.namespace, workflow_execution=WorkflowExecution(workflow_id=name)
        )
        # Not at once: a worker may be at it still, and Temporal's list may take it up after it was deleted from there.
        await asyncio.sleep(SETTLED_SECONDS)
        with contextlib.suppress(*UNANSWERED):
            async with asyncio.timeout(CALL_SECONDS):
                await self._client.workflow_service.delete_workflow_execution(request)
