"""The worker process: one Temporal worker for workflows, validation and files, one for inference."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version
from typing import Final, TypeVar

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import Runtime
from temporalio.service import RPCError
from temporalio.worker import FixedSizeSlotSupplier, Worker, WorkerTuner

from activities.inference import InferenceClient
from activities.limiter import Limiter, RoomForRequests
from activities.metrics import report_limiter
from activities.pause_shards import PauseShards
from activities.run_requests import RunRequests
from activities.settings import Settings
from activities.storage import ObjectStore
from activities.validate_input import ValidateInput
from activities.write_files import WriteFiles
from workflows.batch import BatchWorkflow
from workflows.contract import inference_task_queue

log = logging.getLogger("everbatch.worker")

T = TypeVar("T")

DEFAULT_TEMPORAL_ADDRESS: Final = "localhost:7233"
CONNECT_RETRY_SECONDS: Final = 1.0
REASON_LENGTH: Final = 300

STORE_THREADS: Final = 32
"""Blocking store calls at once. Most of their time is waiting for the disk or the network."""

FILE_ACTIVITIES: Final = 8
"""Inputs validated and result files written at once by one worker."""

STICKY_PATIENCE: Final = timedelta(seconds=2)
"""How long a workflow waits for the worker that has it in its cache before any other may take it. By default ten
seconds, in which a batch whose worker was killed stands still, although its shards go on elsewhere."""

HEARTBEAT_THROTTLE: Final = timedelta(seconds=1.5)
"""Between two heartbeats on the wire; also how late word of a cancel or a pause may come."""


def temporal_address() -> str:
    """Where Temporal is, by the SDK's own environment variables and profiles."""
    return ClientConfig.load_client_connect_config().get("target_host") or DEFAULT_TEMPORAL_ADDRESS


async def connect(address: str | None = None, *, lazy: bool = False, runtime: Runtime | None = None) -> Client:
    """A client of the server at ``address``, or else by the SDK's own environment variables and profiles.

    Raises:
        RuntimeError: Temporal cannot be reached (unless ``lazy``).
    """
    config: ClientConnectConfig = {} if address else ClientConfig.load_client_connect_config()
    config["target_host"] = address or config.get("target_host") or DEFAULT_TEMPORAL_ADDRESS
    return await Client.connect(**config, data_converter=pydantic_data_converter, lazy=lazy, runtime=runtime)


async def connect_when_there(stop: asyncio.Event, runtime: Runtime | None = None) -> Client | None:
    """Wait for Temporal, saying so, and connect; ``None`` if ``stop`` is set before.

    Raises:
        ValueError: its address cannot be one.
    """
    return await when_there(lambda: connect(runtime=runtime), stop)


async def when_there(ask: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T | None:
    """What Temporal answers once it does, saying meanwhile why it does not; ``None`` if ``stop`` is set before."""
    said = ""
    while not stop.is_set():
        try:
            answer = await ask()
            if said:
                log.warning("Temporal at %s is there", temporal_address())
            return answer
        except (RuntimeError, RPCError) as error:
            reason = " ".join(str(error).split())[:REASON_LENGTH]
            if reason != said:  # it may be away at first, and then refuse our key
                log.warning("waiting for Temporal at %s: %s", temporal_address(), reason)
                said = reason
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), CONNECT_RETRY_SECONDS)
    return None


class BatchWorker:
    """Polls both task queues until it is stopped. Build it on a running event loop."""

    def __init__(self, client: Client, settings: Settings, store: ObjectStore, inference: InferenceClient) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORE_THREADS, "store"))
        self._client = client
        self._limiter = Limiter(settings.max_in_flight)
        room = RoomForRequests(self._limiter)
        run_requests = RunRequests(store, inference, self._limiter, room, settings.commit_interval)
        self._drain_seconds = settings.drain_timeout
        drain = timedelta(seconds=settings.drain_timeout)
        # The SDK's default is a hash over the code of all loaded modules: most of a second at each start.
        build_id = f"everbatch-{version('everbatch')}"
        self._batch_worker = Worker(
            client,
            task_queue=settings.task_queue,
            build_id=build_id,
            workflows=[BatchWorkflow],
            activities=[
                ValidateInput(store, inference).validate_input,
                WriteFiles(store).write_files,
                PauseShards(client).pause_shards,
            ],
            max_concurrent_activities=FILE_ACTIVITIES,
            sticky_queue_schedule_to_start_timeout=STICKY_PATIENCE,
            disable_eager_activity_execution=True,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            graceful_shutdown_timeout=drain,
        )
        fixed = FixedSizeSlotSupplier(1)  # this worker has no other tasks
        self._inference_worker = Worker(
            client,
            task_queue=inference_task_queue(settings.task_queue),
            build_id=build_id,
            activities=[run_requests.run_requests],
            tuner=WorkerTuner.create_composite(
                workflow_supplier=fixed,
                activity_supplier=room,
                local_activity_supplier=fixed,
                nexus_supplier=fixed,
            ),
            disable_eager_activity_execution=True,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            graceful_shutdown_timeout=drain,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; then let requests in flight end, within the drain timeout.

        Raises:
            Exception: a worker failed for good, for example because Temporal refuses its credentials.
        """
        meter = self._client.service_client.config.runtime or Runtime.default()
        reporting = asyncio.create_task(report_limiter(self._limiter, meter.metric_meter))
        runs = [asyncio.create_task(worker.run()) for worker in (self._batch_worker, self._inference_worker)]
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *runs], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        reporting.cancel()
        self._limiter.drain(self._drain_seconds)
        # Inference first: what it hands back is then settled by a workflow worker that still runs.
        await self._inference_worker.shutdown()
        await self._batch_worker.shutdown()
        await asyncio.gather(*runs)
