"""The worker process, with Temporal workers for batches and files, control, each upstream, and webhooks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.worker import (
    FixedSizeSlotSupplier,
    Worker,
    WorkerTuner,
)

from activities.cancel_watch import CancelWatch
from activities.control_workers import ControlWorkers
from activities.process import Process
from activities.run_requests import RunRequests
from activities.settings import Settings
from activities.side_loop import SideLoop, side_loop
from activities.store.object_store import STORE_THREADS, ObjectStore
from activities.upstreams.client import InferenceClient
from activities.upstreams.health_log import HealthLog
from activities.upstreams.limiter import Limiter
from activities.upstreams.load_watch import watch_load
from activities.upstreams.metrics import RequestMetrics, report_limiters
from activities.upstreams.slots import FirstShardSlots, ShardSlots
from activities.worker_options import worker_options
from workflows.contract import (
    first_task_queue,
    inference_task_queue,
    upstream_task_queue,
)

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
        self._store = store
        self._inference = inference
        self._limiters: dict[str, Limiter] = {}
        self._slots: list[ShardSlots] = []
        self._metrics = RequestMetrics()
        self._process = Process(settings.max_answers_bytes, CancelWatch(client))
        self._inference_workers = [
            worker for upstream in inference for worker in self._workers_of_upstream(store, upstream)
        ]

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
            **worker_options(self._settings),
            activities=[run_requests.run_requests],
            tuner=WorkerTuner.create_composite(
                workflow_supplier=fixed,
                activity_supplier=slots,
                local_activity_supplier=fixed,
                nexus_supplier=fixed,
            ),
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
        try:
            async with side_loop("control") as side:
                await self._run_on(side, stop, at_once)
        finally:
            for report in reports:
                report.cancel()

    async def _run_on(self, side: SideLoop, stop: asyncio.Event, at_once: asyncio.Event | None) -> None:
        others = await side.run(self._other_workers())
        runs = await self._start(side, others, stop)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *runs], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for limiter in self._limiters.values():
            limiter.drain(self._settings.drain_timeout)
        dropping = asyncio.create_task(self._drop(at_once)) if at_once else None
        # Inference stops first, so that the workflow worker can still handle the shards that it returns.
        shutdowns = [worker.shutdown() for worker in self._inference_workers]
        await asyncio.gather(*shutdowns, side.run(others.webhooks.shutdown()))
        control = side.run(others.control.shutdown())  # its grace time is longer than what follows
        await asyncio.sleep(SETTLE.total_seconds())
        await asyncio.gather(control, side.run(others.batches.shutdown()))
        if dropping:
            dropping.cancel()
        await side.run(others.close())
        await asyncio.gather(*runs)

    async def _other_workers(self) -> ControlWorkers:
        upstreams = [client.upstream for client in self._inference]
        return ControlWorkers(self._client, self._settings, self._store, upstreams)

    async def _start(self, side: SideLoop, others: ControlWorkers, stop: asyncio.Event) -> list[asyncio.Future[None]]:
        # The workflow worker gets no grace time: the SDK would take workflow tasks during it and not run them.
        os.environ.pop(POLL_GRACE_VARIABLE, None)
        runs = [side.run(others.batches.run())]
        while not (others.batches.is_running or runs[0].done() or stop.is_set()):  # noqa: ASYNC110 - sets no event
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)  # on its own event loop, it may not have come to its first poll
        os.environ[POLL_GRACE_VARIABLE] = str(POLL_GRACE // timedelta(milliseconds=1))
        runs += [side.run(worker.run()) for worker in (others.control, others.webhooks)]
        return [*runs, *(asyncio.create_task(worker.run()) for worker in self._inference_workers)]

    async def _drop(self, at_once: asyncio.Event) -> None:
        await at_once.wait()
        for slots in self._slots:
            slots.clear()
