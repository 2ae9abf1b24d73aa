"""The activity that runs a shard: it loads the committed answers and sends the other requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity

from activities.passing_failures import store_failure, try_again
from activities.process import Process
from activities.records import shard_keys
from activities.records.shard_keys import ShardRef
from activities.results import commits
from activities.results.commits import Commits
from activities.results.shard_input import read_requests
from activities.results.shard_log import ShardLog
from activities.shard_run import AT_ONCE, ShardRun
from activities.store.object_store import ObjectStore, StoreError
from activities.upstreams.client import InferenceClient
from activities.upstreams.limiter import Limiter
from activities.upstreams.metrics import RequestMetrics
from activities.upstreams.slots import FirstShardSlots, ShardSlots
from workflows.contract import RUN_REQUESTS, RunRequestsStub
from workflows.types import RunRequestsInput, ShardResult
from workflows.waits import worker_wait


@dataclass(frozen=True, eq=False)
class RunRequests(RunRequestsStub):
    """The activity for one upstream and one of its task queues."""

    store: ObjectStore
    client: InferenceClient
    limiter: Limiter
    slots: ShardSlots
    commit_interval: float
    """Maximum time in seconds that an answer waits to be committed with others."""
    metrics: RequestMetrics
    process: Process

    @activity.defn(name=RUN_REQUESTS)
    async def run_requests(self, task: RunRequestsInput) -> ShardResult:
        shard = ShardRef(task.ref, task.cut, task.index)
        log = ShardLog(self.store, shard, shard_keys.attempt_name(activity.info().attempt))
        committing = Commits(log, self.limiter, self.metrics, self.commit_interval)
        shared = (self.store, self.client, self.limiter, self.metrics, self.process)
        run = ShardRun(task, log, committing, *shared, self._turn(task))
        try:
            result = await self._run(task, shard, log, run)
        except StoreError as error:
            run.heartbeat.end()
            # No answer is lost: while an attempt lives, its answers stay in memory until they are stored.
            raise store_failure(error, timedelta(seconds=commits.STORE_RETRY_SECONDS)) from None
        except BaseException:
            run.heartbeat.end()
            raise
        run.heartbeat.stop()
        return result

    async def _run(self, task: RunRequestsInput, shard: ShardRef, log: ShardLog, run: ShardRun) -> ShardResult:
        if self.limiter.draining:  # the task came with one of the last polls
            raise try_again(task, 0, worker_wait("is stopping"), AT_ONCE)
        if result := await log.load():
            return result
        async with self.process.inputs.hold(task.shard.length):
            requests = await asyncio.to_thread(read_requests, self.store, task, log)
            await self.process.other_cuts.carry_over(
                self.store, activity.info().workflow_run_id or "", shard, log, requests
            )
            requests = {line: request for line, request in requests.items() if not log.has(line)}
            with self.slots.running(task.shard.requests, run.waiting):
                return await run.run(requests)

    def _turn(self, task: RunRequestsInput) -> str:
        """Return the key under which its requests take turns. All small batches of a tenant share one, because their
        number would otherwise put the large batches of other tenants at a disadvantage.
        """
        return f"{task.tenant}/first" if isinstance(self.slots, FirstShardSlots) else task.batch_id
