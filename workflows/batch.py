"""The batch workflow: validate, run the shards, write the files, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import Priority, WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, WorkflowAlreadyStartedError, is_cancelled_exception

# Pure modules: loading them once for all runs, not once a run, is safe and saves milliseconds of each start.
with workflow.unsafe.imports_passed_through():
    from workflows import contract
    from workflows.details import batch_details, cut, shard_summary, webhook_summary
    from workflows.ids import format_ranges, webhook_workflow_id
    from workflows.types import (
        BatchError,
        BatchMemo,
        BatchPhase,
        BatchSpec,
        BatchStatus,
        Counts,
        MissingReason,
        PauseShardsInput,
        RunRequestsInput,
        Shard,
        ShardResult,
        ValidateResult,
        WebhookInput,
        WriteFilesInput,
    )
    from workflows.webhook import WebhookWorkflow

T = TypeVar("T")

RATE_WINDOW = 30.0
"""Seconds over which the recent rate is taken."""

MEMO_STEPS = 10
"""How often in its life a run writes its counts where they can be read without a worker."""


def fairness_weight(shard: Shard, share: float = 1.0) -> float:
    """Temporal takes turns between batches by tasks; this makes it turns by requests, times the batch's ``share``.

    Measured behind a batch of 50,000: with equal weights each single request of a small batch waited for a hundred of
    the large one.
    """
    return min(1000.0, max(0.001, 100.0 * share / shard.requests))


@workflow.defn(name=contract.BATCH_WORKFLOW)
class BatchWorkflow:
    @workflow.init
    def __init__(self, spec: BatchSpec) -> None:
        self._spec = spec
        self._status = BatchStatus()
        self._cancel_requested = False
        self._stopping = False
        self._shards_scheduled = False
        self._shards_paused = False
        self._share = 1.0
        self._upstreams: list[str] = []
        self._plan = ""
        self._attempts: list[str | None] = []
        self._finished: set[int] = set()
        self._samples: deque[tuple[float, int]] = deque()

    @workflow.run
    async def run(self, spec: BatchSpec) -> BatchStatus:
        """Returns the final status. Ends normally in every outcome: a batch that failed is a result of its run."""
        self._describe()
        work = asyncio.create_task(self._work())
        pausing = asyncio.create_task(self._pause_and_resume())
        outcome, missing = await self._wait_for(work)
        pausing.cancel()
        return await self._finalize(outcome, missing)

    @workflow.query(name=contract.STATUS_QUERY)
    def status(self) -> BatchStatus:
        return self._status

    @workflow.signal(name=contract.CANCEL_SIGNAL)
    def cancel(self) -> None:
        self._cancel_requested = True
        if self._status.cancelling_at is None and not self._status.phase.is_terminal:
            self._update(cancelling_at=self._now())

    @workflow.signal(name=contract.PAUSE_SIGNAL)
    def pause(self) -> None:
        if self._status.paused_at is None and not self._status.finalizing_at:
            self._update(paused_at=self._now())

    @workflow.signal(name=contract.RESUME_SIGNAL)
    def resume(self) -> None:
        self._update(paused_at=None)

    # The way of a batch

    async def _wait_for(self, work: asyncio.Task[None]) -> tuple[BatchPhase, MissingReason]:
        """Wait until the work is done, cancelled or out of time; it has ended when this returns."""
        # Counted from the create call, so that a start that waited for Temporal does not move the end.
        window = self._spec.created_ms / 1000 + self._spec.window_seconds - workflow.time()
        try:
            if window <= 0 and not self._cancel_requested:
                raise TimeoutError  # a timer this short fires when the work is done, if it is little
            await workflow.wait_condition(
                lambda: work.done() or self._cancel_requested,
                timeout=timedelta(seconds=max(window, 0.001)),
                timeout_summary=f"completion window of {self._spec.completion_window}",
            )
        except TimeoutError:
            await self._stop(work)
            return BatchPhase.EXPIRED, MissingReason.EXPIRED
        except asyncio.CancelledError:  # from the Temporal UI or CLI, not by our signal
            self.cancel()
        if not work.done():
            self._set_phase(BatchPhase.CANCELLING)
            await self._stop(work)
            return BatchPhase.CANCELLED, MissingReason.CANCELLED
        work.result()  # a bug of ours fails the workflow task, which waits for mended code, and not the batch
        failed = bool(self._status.errors)
        return BatchPhase.FAILED if failed else BatchPhase.COMPLETED, MissingReason.FAILED

    async def _stop(self, work: asyncio.Task[None]) -> None:
        """Cancel what runs and wait for it: the shards commit what is answered before they end."""
        self._stopping = True
        work.cancel()
        await self._until_done(work)
        if not work.cancelled():
            work.exception()  # that it was stopped is the news

    async def _until_done(self, task: asyncio.Task[T]) -> None:
        """Wait for a task, also when the workflow is cancelled from the Temporal UI in the meantime."""
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await workflow.wait([task])

    async def _work(self) -> None:
        try:
            result = await self._validate()
        except ActivityError as failure:
            if is_cancelled_exception(failure):
                raise
            error = BatchError(code="server_error", message="The input could not be validated.")
            result = ValidateResult(errors=[error], errors_total=1)
        if self._stopping:
            return  # it was to be cancelled, but ended of itself; that swallows the cancel of this task
        if result.errors:
            self._update(errors=result.errors, errors_total=result.errors_total)
            return
        self._upstreams = result.upstreams or [contract.DEFAULT_UPSTREAM]
        self._plan = result.plan
        self._attempts = [None] * len(result.shards)
        self._update(
            model=result.model,
            in_progress_at=result.finished_at,
            shards_total=len(result.shards),
            counts=Counts(total=result.total),
        )
        self._set_phase(BatchPhase.IN_PROGRESS)
        await workflow.wait_condition(lambda: self._status.paused_at is None)
        self._shards_scheduled = True
        # A tenant with fifty batches gets no more than one with a single one. The key stays the batch's own: under one
        # key for all of a tenant, a request that is tried again would go behind all that its other batches have queued.
        self._share = self._spec.fairness_weight / result.running_batches
        # All at once: who runs next is for Temporal to say, by fairness between batches.
        await asyncio.gather(
            *(
                self._run_shard(index, shard, result.labels[index] if result.labels else "")
                for index, shard in enumerate(result.shards)
            )
        )

    async def _pause_and_resume(self) -> None:
        """Keep Temporal's pausing of the shards as the signals want it. The completion window runs on meanwhile."""
        while True:
            await workflow.wait_condition(
                lambda: self._shards_scheduled and self._shards_paused != (self._status.paused_at is not None)
            )
            self._shards_paused = not self._shards_paused
            self._write_memo()
            await workflow.execute_activity_method(
                contract.PauseShardsStub.pause_shards,
                PauseShardsInput(batch_id=self._spec.batch_id, paused=self._shards_paused),
                start_to_close_timeout=contract.PAUSE_TIMEOUT,
                retry_policy=contract.STEP_RETRY,
                summary="pause the shards" if self._shards_paused else "resume the shards",
            )

    async def _validate(self) -> ValidateResult:
        return await workflow.execute_activity_method(
            contract.ValidateInputStub.validate_input,
            self._spec,
            activity_id="validate",
            start_to_close_timeout=contract.VALIDATE_TIMEOUT,
            heartbeat_timeout=timedelta(seconds=self._spec.heartbeat_timeout),
            retry_policy=contract.STEP_RETRY,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=cut(f"check {self._spec.input_file_id}"),
        )

    async def _run_shard(self, index: int, shard: Shard, label: str) -> None:
        weight = fairness_weight(shard, self._share)
        try:
            result = await workflow.execute_activity_method(
                contract.RunRequestsStub.run_requests,
                RunRequestsInput(
                    batch_id=self._spec.batch_id,
                    tenant=self._spec.tenant,
                    endpoint=self._spec.endpoint,
                    index=index,
                    model=self._status.model or "",
                    shard=shard,
                    max_attempts=self._spec.max_attempts,
                    strict_error_lines=self._spec.strict_error_lines,
                    plan=self._plan,
                ),
                task_queue=contract.upstream_task_queue(
                    self._spec.inference_task_queue, self._upstreams[shard.upstream]
                ),
                activity_id=f"line-{shard.first_line}" if label else f"shard-{index}",
                # One attempt may take as long as the batch: heartbeats tell whether its worker lives.
                start_to_close_timeout=timedelta(seconds=self._spec.window_seconds + 3600),
                heartbeat_timeout=timedelta(seconds=self._spec.heartbeat_timeout),
                retry_policy=contract.SHARD_RETRY,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=shard_summary(index, self._status.shards_total, shard.requests, label),
                priority=Priority(fairness_key=self._spec.batch_id, fairness_weight=weight),
            )
        except ActivityError:
            if not self._stopping:
                workflow.logger.exception("a shard ended without a result; what it committed still counts")
            return
        self._shard_finished(index, result)

    def _shard_finished(self, index: int, result: ShardResult) -> None:
        self._attempts[index] = result.attempt
        self._finished.add(index)
        counts = self._status.counts
        done = counts.completed + counts.failed
        now = workflow.time()
        while self._samples and now - self._samples[0][0] > RATE_WINDOW:
            self._samples.popleft()
        if not self._samples or now - self._samples[-1][0] >= 1.0:
            self._samples.append((now, done))
        self._update(
            counts=Counts(
                total=counts.total,
                completed=counts.completed + result.completed,
                failed=counts.failed + result.failed,
            ),
            usage=self._status.usage + result.usage,
            finished_shards=format_ranges(self._finished),
            rate_since=self._samples[0][0],
            rate_done=self._samples[0][1],
        )
        if len(self._finished) % max(1, len(self._attempts) // MEMO_STEPS) == 0:
            self._write_memo()

    async def _finalize(self, outcome: BatchPhase, missing: MissingReason) -> BatchStatus:
        if self._status.counts.total:
            self._update(finalizing_at=self._now())
            self._set_phase(BatchPhase.CANCELLING if outcome is BatchPhase.CANCELLED else BatchPhase.FINALIZING)
        writing = asyncio.create_task(self._write_files(outcome, missing))
        await self._until_done(writing)
        self._status = writing.result()
        self._set_phase(self._status.phase)
        if self._spec.webhooks:
            await self._until_done(asyncio.create_task(self._start_webhooks()))
        return self._status

    async def _start_webhooks(self) -> None:
        """Hand the news to a workflow of its own: it may take days, and this one is over."""
        task = WebhookInput.of(self._spec, self._status)
        with contextlib.suppress(WorkflowAlreadyStartedError):  # a run before this one, which was reset
            await workflow.start_child_workflow(
                WebhookWorkflow.run,
                task,
                id=webhook_workflow_id(self._spec.batch_id),
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
                static_summary=webhook_summary(task),
            )

    async def _write_files(self, outcome: BatchPhase, missing: MissingReason) -> BatchStatus:
        return await workflow.execute_activity_method(
            contract.WriteFilesStub.write_files,
            WriteFilesInput(
                spec=self._spec,
                status=self._status,
                outcome=outcome,
                attempts=self._attempts,
                missing=missing,
                plan=self._plan,
            ),
            activity_id="write-files",
            start_to_close_timeout=contract.WRITE_TIMEOUT,
            heartbeat_timeout=timedelta(seconds=self._spec.heartbeat_timeout),
            retry_policy=contract.STEP_RETRY,
            cancellation_type=workflow.ActivityCancellationType.ABANDON,
            summary=f"write result files: {outcome}",
        )

    # What is seen from outside

    def _update(self, **changes: object) -> None:
        self._status = self._status.model_copy(update=changes)
        self._describe()

    def _set_phase(self, phase: BatchPhase) -> None:
        self._update(phase=phase)
        workflow.upsert_search_attributes(  # pyright: ignore[reportUnknownMemberType] - the SDK leaves a type open
            [contract.STATUS_ATTRIBUTE.value_set(phase.value)]
        )
        self._write_memo()

    def _write_memo(self) -> None:
        status = self._status
        memo = BatchMemo(
            phase=status.phase,
            counts=status.counts,
            in_progress_at=status.in_progress_at,
            finalizing_at=status.finalizing_at,
            cancelling_at=status.cancelling_at,
            paused_at=status.paused_at,
            finished_shards=status.finished_shards,
            model=status.model,
        )
        workflow.upsert_memo({contract.MEMO_STATUS: memo})

    def _describe(self) -> None:
        workflow.set_current_details(batch_details(self._spec, self._status))

    def _now(self) -> int:
        return int(workflow.time())
