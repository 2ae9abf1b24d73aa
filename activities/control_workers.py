"""The Temporal workers of a worker process that send no requests: for batches and files, control, and webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.close_batch import CloseBatch
from activities.configured import open_inputs
from activities.delete_expired import DeleteExpired
from activities.deliver_webhook import DeliverWebhook
from activities.input.scan_process import ScanProcesses
from activities.passing_failures import StoreFailures
from activities.pause_shards import PauseShards
from activities.settings import Settings
from activities.store.object_store import STORE_THREADS, ObjectStore
from activities.temporal.batch_runs import BatchRuns
from activities.upstreams.client import InferenceClient
from activities.upstreams.config import Upstream
from activities.validate_input import ValidateInput
from activities.worker_options import BUILD_ID, worker_options
from activities.write_files import WriteFiles
from workflows.batch import BatchWorkflow
from workflows.contract import control_task_queue, webhook_task_queue
from workflows.janitor import JanitorWorkflow
from workflows.ready import ReadyWorkflow
from workflows.webhook import WebhookWorkflow

DELIVERIES: Final = 32
"""Maximum number of webhooks that one worker sends at once."""

FILE_ACTIVITIES: Final = 64
"""Maximum number of input and result file activities of one worker. Most wait: each tenant may run only a few."""

SCAN_PROCESSES: Final = 2
"""Maximum number of large inputs that one worker checks at once, each of a different tenant."""

CONTROL_ACTIVITIES: Final = 64

CACHED_WORKFLOWS: Final = 2_000
"""More than a worker runs at once, because a workflow that is evicted is replayed from its history for every step."""

STICKY_PATIENCE: Final = timedelta(seconds=2)
"""Time after which another worker may take a workflow task from the worker that caches its workflow. With the default
of ten seconds, a batch whose worker was killed would wait that long, although its shards continue elsewhere."""


class ControlWorkers:
    """Create it on the event loop on which the workers will run, and close it at the end.

    That is not the loop of inference, which may have hundreds of responses to handle before it comes to anything else.
    Each of the thirty steps that a batch of one request takes on a loop would wait for these.
    """

    def __init__(self, client: Client, settings: Settings, store: ObjectStore, upstreams: Sequence[Upstream]) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORE_THREADS, "control"))
        self._client = client
        self._settings = settings
        self._store = store
        self._scans = ScanProcesses(SCAN_PROCESSES)
        self._inference = [InferenceClient(upstream) for upstream in upstreams]
        self.batches = self._batch_worker()
        self.control = self._control_worker()
        self.webhooks = self._worker_of_webhooks()

    async def close(self) -> None:
        self._scans.close()
        for client in self._inference:
            await client.close()

    def _batch_worker(self) -> Worker:
        settings, store = self._settings, self._store
        inputs = open_inputs(settings)
        validating = ValidateInput(store, self._inference, self._scans, inputs, settings.prefixes)
        return Worker(
            self._client,
            task_queue=settings.task_queue,
            **worker_options(settings),
            workflows=[BatchWorkflow, JanitorWorkflow, WebhookWorkflow, ReadyWorkflow],
            activities=[validating.validate_input, WriteFiles(store).write_files],
            # The sandbox takes a millisecond or more of CPU per activity. Tests replay recorded runs in it instead.
            workflow_runner=UnsandboxedWorkflowRunner(),
            max_cached_workflows=CACHED_WORKFLOWS,
            max_concurrent_activities=FILE_ACTIVITIES,
            sticky_queue_schedule_to_start_timeout=STICKY_PATIENCE,
            interceptors=[StoreFailures()],
        )

    def _control_worker(self) -> Worker:
        client, settings, store = self._client, self._settings, self._store
        runs = BatchRuns(client, settings.task_queue)
        return Worker(
            client,
            task_queue=control_task_queue(settings.task_queue),
            **worker_options(settings),
            activities=[
                PauseShards(client).pause_shards,
                CloseBatch(store, runs).close_batch,
                DeleteExpired(store, runs).delete_expired,
            ],
            max_concurrent_activities=CONTROL_ACTIVITIES,
            interceptors=[StoreFailures()],
        )

    def _worker_of_webhooks(self) -> Worker:
        endpoints = self._settings.webhook_endpoints()
        deliver = DeliverWebhook(endpoints, self._store, allow_private=self._settings.webhook_allow_private)
        return Worker(
            self._client,
            task_queue=webhook_task_queue(self._settings.task_queue),
            build_id=BUILD_ID,  # without a deployment: workers of any version may deliver events
            activities=[deliver.deliver_webhook],
            max_concurrent_activities=DELIVERIES,
            disable_eager_activity_execution=True,
            graceful_shutdown_timeout=timedelta(seconds=self._settings.drain_timeout),
        )
