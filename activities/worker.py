"""The worker process: a Temporal worker for batches and files, one for each upstream, and one for webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version
from typing import Final, TypedDict

from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import Runtime
from temporalio.worker import FixedSizeSlotSupplier, Worker, WorkerDeploymentConfig, WorkerTuner

from activities.deliver_webhook import DeliverWebhook
from activities.inference import InferenceClient
from activities.janitor import DeleteExpired
from activities.limiter import Limiter, RoomForRequests
from activities.metrics import RequestMetrics, report_limiters
from activities.pause_shards import PauseShards
from activities.run_requests import RunRequests
from activities.settings import Settings
from activities.storage import STORE_THREADS, ObjectStore
from activities.validate_input import ValidateInput
from activities.webhooks import Endpoints
from activities.write_files import WriteFiles
from workflows.batch import BatchWorkflow
from workflows.contract import inference_task_queue, upstream_task_queue, webhook_task_queue
from workflows.janitor import JanitorWorkflow
from workflows.webhook import WebhookWorkflow

# The SDK's default is a hash over the code of all loaded modules: most of a second at each start.
BUILD_ID: Final = f"everbatch-{version('everbatch')}"

DELIVERIES: Final = 32
"""Webhooks sent at once by one worker."""

FILE_ACTIVITIES: Final = 8
"""Inputs validated and result files written at once by one worker."""

STICKY_PATIENCE: Final = timedelta(seconds=2)
"""How long a workflow waits for the worker that has it in its cache before any other may take it. By default ten
seconds, in which a batch whose worker was killed stands still, although its shards go on elsewhere."""

HEARTBEAT_THROTTLE: Final = timedelta(seconds=1.5)
"""Between two heartbeats on the wire; also how late word of a cancel or a pause may come."""


class _Identity(TypedDict, total=False):
    build_id: str
    deployment_config: WorkerDeploymentConfig


def _identity(settings: Settings) -> _Identity:
    """What Temporal is told of this worker's code."""
    build_id = settings.build_id or BUILD_ID
    if not settings.deployment:
        return {"build_id": build_id}
    return {
        "deployment_config": WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(settings.deployment, build_id),
            use_worker_versioning=True,
            # A batch ends on the code that it began on: at most its completion window later.
            default_versioning_behavior=VersioningBehavior.PINNED,
        )
    }


class BatchWorker:
    """Polls its task queues until it is stopped: one for batches and files, one for each upstream's requests, and one
    for webhooks where it knows of any.

    Build it on a running event loop.
    """

    def __init__(
        self, client: Client, settings: Settings, store: ObjectStore, inference: Sequence[InferenceClient]
    ) -> None:
        """Args: ``inference`` has a client for each upstream."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORE_THREADS, "store"))
        self._client = client
        self._settings = settings
        self._limiters: dict[str, Limiter] = {}
        self._metrics = RequestMetrics()
        self._drain = timedelta(seconds=settings.drain_timeout)
        self._batch_worker = Worker(
            client,
            task_queue=settings.task_queue,
            **_identity(settings),
            workflows=[BatchWorkflow, JanitorWorkflow, WebhookWorkflow],
            activities=[
                ValidateInput(store, inference).validate_input,
                WriteFiles(store).write_files,
                PauseShards(client).pause_shards,
                DeleteExpired(store).delete_expired,
            ],
            max_concurrent_activities=FILE_ACTIVITIES,
            sticky_queue_schedule_to_start_timeout=STICKY_PATIENCE,
            disable_eager_activity_execution=True,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            graceful_shutdown_timeout=self._drain,
        )
        self._inference_workers = [self._inference_worker(store, upstream) for upstream in inference]
        endpoints = settings.webhook_endpoints()
        self._webhook_workers = [self._webhook_worker(endpoints)] if endpoints else []

    def _inference_worker(self, store: ObjectStore, inference: InferenceClient) -> Worker:
        """With a limiter and a task queue of its own, so that upstreams do not wait for each other."""
        upstream = inference.upstream
        limiter = Limiter(upstream.max_in_flight, replicas=len(upstream.urls))
        self._limiters[upstream.name] = limiter
        room = RoomForRequests(limiter)
        run_requests = RunRequests(store, inference, limiter, room, self._settings.commit_interval, self._metrics)
        fixed = FixedSizeSlotSupplier(1)  # this worker has no other tasks
        return Worker(
            self._client,
            task_queue=upstream_task_queue(inference_task_queue(self._settings.task_queue), upstream.name),
            **_identity(self._settings),
            activities=[run_requests.run_requests],
            tuner=WorkerTuner.create_composite(
                workflow_supplier=fixed,
                activity_supplier=room,
                local_activity_supplier=fixed,
                nexus_supplier=fixed,
            ),
            disable_eager_activity_execution=True,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            graceful_shutdown_timeout=self._drain,
        )

    def _webhook_worker(self, endpoints: Endpoints) -> Worker:
        deliver = DeliverWebhook(endpoints, allow_private=self._settings.webhook_allow_private)
        return Worker(
            self._client,
            task_queue=webhook_task_queue(self._settings.task_queue),
            build_id=BUILD_ID,  # of no deployment: an event that is old news is told by workers of any version
            activities=[deliver.deliver_webhook],
            max_concurrent_activities=DELIVERIES,
            disable_eager_activity_execution=True,
            graceful_shutdown_timeout=self._drain,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; then let requests in flight end, within the drain timeout.

        Raises:
            Exception: a worker failed for good, for example because Temporal refuses its credentials.
        """
        meter = self._client.service_client.config.runtime or Runtime.default()
        reports = [
            asyncio.create_task(report_limiters(self._limiters, meter.metric_meter)),
            asyncio.create_task(self._metrics.report(meter.metric_meter)),
        ]
        workers = [self._batch_worker, *self._inference_workers, *self._webhook_workers]
        runs = [asyncio.create_task(worker.run()) for worker in workers]
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *runs], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for report in reports:
            report.cancel()
        for limiter in self._limiters.values():
            limiter.drain(self._settings.drain_timeout)
        # Inference first: what it hands back is then settled by a workflow worker that still runs.
        await asyncio.gather(*(worker.shutdown() for worker in self._inference_workers + self._webhook_workers))
        await self._batch_worker.shutdown()
        await asyncio.gather(*runs)
