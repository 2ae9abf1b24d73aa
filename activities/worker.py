"""The worker process, with Temporal workers for batches and files, control, each upstream, and webhooks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version
from typing import Final, TypedDict

from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import Runtime
from temporalio.worker import (
    FixedSizeSlotSupplier,
    UnsandboxedWorkflowRunner,
    Worker,
    WorkerDeploymentConfig,
    WorkerTuner,
)

from activities.cancel_watch import CancelWatch
from activities.close_batch import CloseBatch
from activities.configured import open_inputs
from activities.delete_expired import DeleteExpired
from activities.deliver_webhook import DeliverWebhook
from activities.heartbeats import HEARTBEAT_THROTTLE
from activities.input.scan_process import ScanProcesses
from activities.passing_failures import StoreFailures
from activities.pause_shards import PauseShards
from activities.process import Process
from activities.run_requests import RunRequests
from activities.settings import Settings
from activities.store.object_store import STORE_THREADS, ObjectStore
from activities.temporal.batch_runs import BatchRuns
from activities.upstreams.client import InferenceClient
from activities.upstreams.health_log import HealthLog
from activities.upstreams.limiter import Limiter
from activities.upstreams.load_watch import watch_load
from activities.upstreams.metrics import RequestMetrics, report_limiters
from activities.upstreams.slots import FirstShardSlots, ShardSlots
from activities.validate_input import ValidateInput
from activities.write_files import WriteFiles
from workflows.batch import BatchWorkflow
from workflows.contract import (
    control_task_queue,
    first_task_queue,
    inference_task_queue,
    upstream_task_queue,
    webhook_task_queue,
)
from workflows.janitor import JanitorWorkflow
from workflows.ready import ReadyWorkflow
from workflows.webhook import WebhookWorkflow

# The SDK's default, a hash of the code of all loaded modules, takes most of a second at each start.
BUILD_ID: Final = f"everbatch-{version('everbatch')}"

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

POLL_GRACE: Final = timedelta(milliseconds=500)
"""Time for which a stopping worker keeps its polls open for activities that are already on their way.

By default, the SDK drops its polls at once. If Temporal has just answered one with a task, that task counts as started
but nobody runs it until its heartbeat timeout, which happened in one of four stops of a busy worker. Only servers with
``worker_poll_complete_on_shutdown`` end the polls of a stopping worker themselves, and the SDK then waits for them.
"""
POLL_GRACE_VARIABLE: Final = "TEMPORAL_POLL_SHUTDOWN_INTERRUPT_WAIT_MS"
"""The SDK has no option for this, but reads this environment variable when a worker starts to run."""

SETTLE: Final = timedelta(milliseconds=300)
"""Time between the last shard result and the stop of the workflow worker, in which it runs the resulting workflow task.

A workflow task that is lost with a poll only times out after ten seconds.
"""


class _Identity(TypedDict, total=False):
    build_id: str
    deployment_config: WorkerDeploymentConfig


def _identity(settings: Settings) -> _Identity:
    """Return the version of this worker's code as options of a Temporal worker."""
    build_id = settings.build_id or BUILD_ID
    if not settings.deployment:
        return {"build_id": build_id}
    return {
        "deployment_config": WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(settings.deployment, build_id),
            use_worker_versioning=True,
            # A batch ends on the version on which it began, at most its completion window later.
            default_versioning_behavior=VersioningBehavior.PINNED,
        )
    }


class BatchWorker:
    """Polls its task queues until it is stopped: for batches and files, for control, two for the requests of each
    upstream, and for webhooks.

    Create it on a running event loop.
    """

    def __init__(
        self, client: Client, settings: Settings, store: ObjectStore, inference: Sequence[InferenceClient]
    ) -> None:
        """Args: ``inference`` are the clients of the upstreams."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORE_THREADS, "store"))
        self._client = client
        self._settings = settings
        self._scans = ScanProcesses(SCAN_PROCESSES)
        self._inference = inference
        self._limiters: dict[str, Limiter] = {}
        self._slots: list[ShardSlots] = []
        self._metrics = RequestMetrics()
        self._process = Process(settings.max_answers_bytes, CancelWatch(client))
        self._drain = timedelta(seconds=settings.drain_timeout)
        self._batch_worker = Worker(
            client,
            task_queue=settings.task_queue,
            **_identity(settings),
            workflows=[BatchWorkflow, JanitorWorkflow, WebhookWorkflow, ReadyWorkflow],
            activities=[
                ValidateInput(store, inference, self._scans, open_inputs(settings), settings.prefixes).validate_input,
                WriteFiles(store).write_files,
            ],
            # The sandbox takes a millisecond or more of CPU per activity, on the event loop of inference. Tests replay
            # recorded runs in the sandbox instead.
            workflow_runner=UnsandboxedWorkflowRunner(),
            max_cached_workflows=CACHED_WORKFLOWS,
            max_concurrent_activities=FILE_ACTIVITIES,
            sticky_queue_schedule_to_start_timeout=STICKY_PATIENCE,
            disable_eager_activity_execution=True,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            graceful_shutdown_timeout=self._drain,
            interceptors=[StoreFailures()],
        )
        runs = BatchRuns(client, settings.task_queue)
        self._control_worker = Worker(
            client,
            task_queue=control_task_queue(settings.task_queue),
            **_identity(settings),
            activities=[
                PauseShards(client).pause_shards,
                CloseBatch(store, runs).close_batch,
                DeleteExpired(store, runs).delete_expired,
            ],
            max_concurrent_activities=CONTROL_ACTIVITIES,
            interceptors=[StoreFailures()],
            disable_eager_activity_execution=True,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            graceful_shutdown_timeout=self._drain,
        )
        self._inference_workers = [
            worker for upstream in inference for worker in self._workers_of_upstream(store, upstream)
        ]
        self._webhook_worker = self._worker_of_webhooks(store)

    def _workers_of_upstream(self, store: ObjectStore, inference: InferenceClient) -> list[Worker]:
        """Create the workers of an upstream. Each upstream has its own limiter and queues, to not delay others."""
        upstream = inference.upstream
        limiter = Limiter(
            upstream.most_in_flight,
            replicas=len(upstream.urls),
            timeout=upstream.timeout,
            finds_level=upstream.finds_level,
            headroom=upstream.interactive_headroom,
        )
        limiter.on_end = HealthLog(upstream).saw
        self._limiters[upstream.name] = limiter
        queue = upstream_task_queue(inference_task_queue(self._settings.task_queue), upstream.name)
        first_slots = FirstShardSlots(limiter)
        slots = ShardSlots(limiter, first_slots)
        interval = self._settings.commit_interval
        return [
            self._inference_worker(
                name, slots, RunRequests(store, inference, limiter, slots, interval, self._metrics, self._process)
            )
            for name, slots in ((queue, slots), (first_task_queue(queue), first_slots))
        ]

    def _inference_worker(self, queue: str, slots: ShardSlots, run_requests: RunRequests) -> Worker:
        self._slots.append(slots)
        fixed = FixedSizeSlotSupplier(1)  # this worker runs activities only
        return Worker(
            self._client,
            task_queue=queue,
            **_identity(self._settings),
            activities=[run_requests.run_requests],
            tuner=WorkerTuner.create_composite(
                workflow_supplier=fixed,
                activity_supplier=slots,
                local_activity_supplier=fixed,
                nexus_supplier=fixed,
            ),
            disable_eager_activity_execution=True,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            graceful_shutdown_timeout=self._drain,
        )

    def _worker_of_webhooks(self, store: ObjectStore) -> Worker:
        endpoints = self._settings.webhook_endpoints()
        deliver = DeliverWebhook(endpoints, store, allow_private=self._settings.webhook_allow_private)
        return Worker(
            self._client,
            task_queue=webhook_task_queue(self._settings.task_queue),
            build_id=BUILD_ID,  # without a deployment: workers of any version may deliver events
            activities=[deliver.deliver_webhook],
            max_concurrent_activities=DELIVERIES,
            disable_eager_activity_execution=True,
            graceful_shutdown_timeout=self._drain,
        )

    async def run(self, stop: asyncio.Event, at_once: asyncio.Event | None = None) -> None:
        """Run until ``stop`` is set, then let requests in flight end, until the drain timeout or ``at_once`` is set.
        Shards that have not ended by then are cancelled and returned to Temporal.

        Raises:
            Exception: a worker failed permanently, for example because Temporal refuses its credentials.
        """
        meter = self._client.service_client.config.runtime or Runtime.default()
        reports = [
            asyncio.create_task(report_limiters(self._limiters, meter.metric_meter)),
            asyncio.create_task(self._metrics.report(meter.metric_meter)),
            *(
                asyncio.create_task(watch_load(client, self._limiters[client.upstream.name], replica))
                for client in self._inference
                if client.upstream.needs_watch
                for replica in range(len(client.upstream.urls))
            ),
        ]
        runs = await self._start(stop)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *runs], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for report in reports:
            report.cancel()
        for limiter in self._limiters.values():
            limiter.drain(self._settings.drain_timeout)
        dropping = asyncio.create_task(self._drop(at_once)) if at_once else None
        # Inference stops first, so that the workflow worker can still handle the shards that it returns.
        await asyncio.gather(*(worker.shutdown() for worker in [*self._inference_workers, self._webhook_worker]))
        control = asyncio.create_task(self._control_worker.shutdown())  # its grace time is longer than what follows
        await asyncio.sleep(SETTLE.total_seconds())
        await asyncio.gather(control, self._batch_worker.shutdown())
        if dropping:
            dropping.cancel()
        self._scans.close()
        await asyncio.gather(*runs)

    async def _start(self, stop: asyncio.Event) -> list[asyncio.Task[None]]:
        # The workflow worker gets no grace time: the SDK would take workflow tasks during it and not run them.
        os.environ.pop(POLL_GRACE_VARIABLE, None)
        runs = [asyncio.create_task(self._batch_worker.run())]
        while not (self._batch_worker.is_running or runs[0].done() or stop.is_set()):  # noqa: ASYNC110 - sets no event
            await asyncio.sleep(0.01)
        os.environ[POLL_GRACE_VARIABLE] = str(POLL_GRACE // timedelta(milliseconds=1))
        others = [self._control_worker, *self._inference_workers, self._webhook_worker]
        return runs + [asyncio.create_task(worker.run()) for worker in others]

    async def _drop(self, at_once: asyncio.Event) -> None:
        await at_once.wait()
        for slots in self._slots:
            slots.clear()
