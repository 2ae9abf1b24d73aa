"""The batch workflow: it validates the input, runs the shards and writes the result files, even if it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory, is_cancelled_exception

# These modules are pure, so sharing them between runs is safe. Loading them for each run would cost milliseconds.
with workflow.unsafe.imports_passed_through():
    from workflows import contract, steps
    from workflows.details import batch_details, end_reason, shard_summary
    from workflows.end_types import CloseBatchInput, WriteFilesInput
    from workflows.events import ByTenant, EventType, NotedEvent, validated_text, who
    from workflows.fairness import MAX_SHARDS, fairness_key, fairness_weight, first_window
    from workflows.tally import Tally
    from workflows.types import (
        BatchError,
        BatchMemo,
        BatchPhase,
        BatchSpec,
        BatchStatus,
        MissingReason,
        PauseShardsInput,
        RunRequestsInput,
        Shard,
        ShardResult,
        ValidateResult,
    )

T = TypeVar("T")

MEMO_STEPS = 10
"""Number of times that finished shards update the counts in the memo, which can be read without a worker."""

MEMO_SECONDS = 60.0
"""Seconds since the last update after which the next finished shard updates the memo in any case."""

_END_TIMES: Final = {
    BatchPhase.COMPLETED: "completed_at",
    BatchPhase.FAILED: "failed_at",
    BatchPhase.EXPIRED: "expired_at",
    BatchPhase.CANCELLED: "cancelled_at",
}


@workflow.defn(name=contract.BATCH_WORKFLOW)
class BatchWorkflow:
    @workflow.init
    def __init__(self, spec: BatchSpec) -> None:
        self._spec = spec
        self._status = BatchStatus()
        self._cancel_requested = False
        self._run_is_cancelled = False  # by Temporal: a run can only end as Canceled if Temporal cancelled it
        self._stopping = False
        self._is_checked = False
        self._shards_scheduled = False
        self._shards_paused = False
        self._upstreams: list[str] = []
        self._cut = ""
        self._has_order = False
        self._attempts: list[str | None] = []
        self._requests = 0  # number of requests to send
        self._tally = Tally()
        self._memo_at = 0.0

    @workflow.run
    async def run(self, spec: BatchSpec) -> BatchStatus:
        """Run a batch to its end and return its final status if it completed.

        Raises:
            CancelledError: the batch is cancelled.
            ApplicationError: the batch failed or expired; the message gives the reason in one line.
        """
        self._describe()
        work = asyncio.create_task(self._work())
        pausing = asyncio.create_task(self._pause_and_resume())
        outcome, missing = await self._wait_for(work)
        pausing.cancel()
        could_merge = await self._merge(outcome, missing)
        self._decide(outcome)
        await self._close(keep_answers=not could_merge)
        return await self._end()

    @workflow.query(name=contract.STATUS_QUERY)
    def status(self) -> BatchStatus:
        return self._status

    @workflow.signal(name=contract.CANCEL_SIGNAL)
    def cancel(self, by: ByTenant | str | None = None) -> None:
        if self._status.outcome is None and not self._cancel_requested:
            self._cancel_requested = True
            self._update(cancelling_at=self._now())
            self._note(EventType.CANCELLING, f"Cancelled {who(by)}.")

    @workflow.signal(name=contract.PAUSE_SIGNAL)
    def pause(self, by: ByTenant | str | None = None) -> None:
        if self._status.paused_at is None and not self._status.finalizing_at:
            self._update(paused_at=self._now())
            self._note(EventType.PAUSED, f"Paused {who(by)}.")

    @workflow.signal(name=contract.RESUME_SIGNAL)
    def resume(self, by: ByTenant | str | None = None) -> None:
        if self._status.paused_at is not None:
            self._update(paused_at=None, rate_since=workflow.time(), rate_done=None)
            self._note(EventType.RESUMED, f"Resumed {who(by)}.")

    # The phases of a batch

    async def _wait_for(self, work: asyncio.Task[None]) -> tuple[BatchPhase, MissingReason]:
        """Wait until the work is done, cancelled or out of time. In each case it has ended when this returns."""
        # The window begins with the create call, so a start that was delayed by Temporal does not move its end.
        window = self._spec.created_ms / 1000 + self._spec.window_seconds - workflow.time()
        try:
            if window <= 0 and not self._cancel_requested:
                raise TimeoutError  # a small batch might be done before the shortest timer fires
            await workflow.wait_condition(
                lambda: work.done() or self._cancel_requested,
                timeout=timedelta(seconds=max(window, 0.001)),
                timeout_summary=f"completion window of {self._spec.completion_window}",
            )
        except TimeoutError:
            await self._stop(work)
            return BatchPhase.EXPIRED, MissingReason.EXPIRED
        except asyncio.CancelledError:
            self._cancelled_by_temporal()
        if self._cancel_requested or not work.done():
            self._set_phase(BatchPhase.CANCELLING)
            await self._stop(work)
            return BatchPhase.CANCELLED, MissingReason.CANCELLED
        work.result()  # a bug fails not the batch but the workflow task, which is retried until the code is fixed
        return BatchPhase.FAILED if self._status.errors else BatchPhase.COMPLETED, MissingReason.FAILED

    async def _stop(self, work: asyncio.Task[None]) -> None:
        """Cancel the work and wait until it has ended: running shards first commit the answers that they have."""
        self._stopping = True
        work.cancel()
        await self._until_done(work)
        if not work.cancelled():
            work.exception()  # marked as retrieved: the stop decides the outcome

    async def _done(self, step: Coroutine[Any, Any, T]) -> T:
        """Return the result of a step that continues even if the run is cancelled in the meantime."""
        task = asyncio.create_task(step)
        await self._until_done(task)
        return task.result()

    async def _until_done(self, task: asyncio.Task[T]) -> None:
        while not task.done():
            try:
                await workflow.wait([task])
            except asyncio.CancelledError:
                self._cancelled_by_temporal()

    def _cancelled_by_temporal(self) -> None:
        """Handle a cancellation of the run, which the API, Temporal's UI and its CLI can all request."""
        self._run_is_cancelled = True
        self.cancel(workflow.cancellation_reason())

    async def _work(self) -> None:
        if self._cancel_requested:
            return
        self._is_checked = True
        began = workflow.time()
        try:
            result = await steps.validate_input(self._spec)
        except ActivityError as failure:
            if is_cancelled_exception(failure):
                raise
            error = BatchError(code="server_error", message="The input could not be validated.")
            result = ValidateResult(errors=[error], errors_total=1)
        if result.has_ended:
            return  # the remaining activities find the final record too
        if self._stopping:
            return  # validation ended before its cancellation arrived, and this task's cancellation was lost
        if result.errors:
            self._update(errors=result.errors, errors_total=result.errors_total)
            return
        self._upstreams = result.upstreams or [contract.DEFAULT_UPSTREAM]
        self._cut = result.cut
        self._has_order = result.has_order
        self._attempts = [None] * len(result.shards)
        self._requests = result.total
        self._update(
            model=result.model,
            in_progress_at=result.finished_at,
            shards_total=len(result.shards),
            counts=result.counts,
            error_summary=result.kept_errors,
            rate_since=workflow.time(),
            rate_done=result.kept.completed + result.kept.failed,
        )
        self._note(EventType.VALIDATED, validated_text(result.total, workflow.time() - began))
        self._set_phase(BatchPhase.IN_PROGRESS)
        await workflow.wait_condition(lambda: self._status.paused_at is None)
        self._shards_scheduled = True
        await self._run_shards(result.shards, result.labels)

    async def _run_shards(self, shards: list[Shard], labels: list[str]) -> None:
        """Run all shards, with at most a window of them scheduled at once, so that workflow tasks stay small however
        large the batch is. Of the scheduled ones, Temporal's task queue fairness decides which runs next.
        """
        window, following = first_window(shards), 0
        first_of = {shard.upstream: index for index, shard in reversed(list(enumerate(shards)))}
        running: dict[int, asyncio.Task[None]] = {}

        def may_start() -> bool:
            return following < len(shards) and len(running) < window and self._status.paused_at is None

        async def stop() -> None:
            for task in running.values():
                task.cancel()
            if running:
                await workflow.wait(list(running.values()))

        try:
            while following < len(shards) or running:
                await workflow.wait_condition(lambda: may_start() or any(task.done() for task in running.values()))
                for index in [index for index, task in running.items() if task.done()]:
                    running.pop(index).result()  # raises only on a bug
                    window = min(window + 1, MAX_SHARDS)
                if self._status.errors:  # a shard has found that sending the other requests is pointless
                    return await stop()
                while may_start():
                    shard, index = shards[following], following
                    is_first = len(shards) == self._requests or first_of[shard.upstream] == index
                    label = labels[index] if labels else ""
                    running[index] = asyncio.create_task(self._run_shard(index, shard, label, is_first))
                    following += 1
        except asyncio.CancelledError:
            await stop()
            raise

    async def _pause_and_resume(self) -> None:
        """Pause and unpause the shard activities to match the signals. The completion window is not extended."""
        while True:
            await workflow.wait_condition(
                lambda: self._shards_scheduled and self._shards_paused != (self._status.paused_at is not None)
            )
            self._shards_paused = not self._shards_paused
            self._write_memo()
            await steps.pause_shards(PauseShardsInput(batch_id=self._spec.batch_id, paused=self._shards_paused))

    async def _run_shard(self, index: int, shard: Shard, label: str, is_first: bool) -> None:
        queue = contract.upstream_task_queue(self._spec.inference_task_queue, self._upstreams[shard.upstream])
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
                    max_line_bytes=self._spec.max_line_bytes,
                    strict_error_lines=self._spec.strict_error_lines,
                    cut=self._cut,
                    has_order=self._has_order,
                ),
                task_queue=contract.first_task_queue(queue) if is_first else queue,
                activity_id=f"line-{shard.first_line}" if shard.requests == 1 else f"shard-{index}",
                # An attempt may last as long as the batch; a lost worker is detected by its missing heartbeats.
                start_to_close_timeout=timedelta(seconds=self._spec.window_seconds + 3600),
                heartbeat_timeout=timedelta(seconds=self._spec.heartbeat_timeout),
                retry_policy=contract.SHARD_RETRY,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=shard_summary(index, self._status.shards_total, shard.requests, label),
                priority=Priority(
                    fairness_key=fairness_key(self._spec.tenant, self._requests),
                    fairness_weight=fairness_weight(shard, self._spec.fairness_weight),
                ),
            )
        except ActivityError as failure:
            cause = failure.cause
            if isinstance(cause, ApplicationError) and cause.type == contract.WRONG_ROUTE:
                self._update(errors=[BatchError(code="wrong_route", message=cause.message)], errors_total=1)
            elif not (self._stopping or self._status.errors):
                workflow.logger.exception("a shard ended without a result; what it committed still counts")
            return
        self._shard_finished(index, result)

    def _shard_finished(self, index: int, result: ShardResult) -> None:
        self._attempts[index] = result.attempt
        now = workflow.time()
        self._status = self._tally.add(self._status, index, result, now)
        self._describe()
        is_step = self._tally.finished % max(1, len(self._attempts) // MEMO_STEPS) == 0
        if is_step or now - self._memo_at >= MEMO_SECONDS:
            self._write_memo()

    # The end

    async def _merge(self, outcome: BatchPhase, missing: MissingReason) -> bool:
        """Write the result files. Returns whether that succeeded."""
        if self._status.counts.total:
            self._update(finalizing_at=self._now())
            self._set_phase(BatchPhase.CANCELLING if outcome is BatchPhase.CANCELLED else BatchPhase.FINALIZING)
        task = WriteFilesInput(
            spec=self._spec, attempts=self._attempts, missing=missing, cut=self._cut, is_checked=self._is_checked
        )
        began = workflow.time()
        merged = await self._done(steps.write_files(task, outcome))
        self._update(history=self._status.history.with_waits(merged.waits).ended(self._now()))
        if merged.errors:
            self._update(errors=merged.errors, errors_total=len(merged.errors))
            return False
        if merged.counts.total:
            self._update(
                counts=merged.counts,
                usage=merged.usage,
                error_summary=merged.error_summary,
                output_file_id=merged.output_file_id,
                error_file_id=merged.error_file_id,
                finished_shards="",
                model=self._status.model or merged.model,
                in_progress_at=self._status.in_progress_at or merged.in_progress_at,
                finalizing_at=self._status.finalizing_at or self._now(),
            )
            self._note(EventType.FILES_WRITTEN, f"Wrote the result files in {workflow.time() - began:.1f} s.")
        return True

    def _decide(self, outcome: BatchPhase) -> None:
        """Decide the outcome of the batch, which does not change afterwards.

        A canceller reads the search attribute: while that shows no outcome and no workflow task is running, the next
        workflow task handles the cancellation before it can reach this decision.
        """
        if self._cancel_requested:
            outcome = BatchPhase.CANCELLED
        elif self._status.errors:
            outcome = BatchPhase.FAILED
        self._update(outcome=outcome, **{_END_TIMES[outcome]: self._now()})
        self._show(outcome)

    async def _close(self, *, keep_answers: bool) -> None:
        run_is_cancelled, status = self._run_is_cancelled, self._status
        task = CloseBatchInput(
            spec=self._spec, status=status, keep_answers=keep_answers, run_is_cancelled=run_is_cancelled
        )
        decided, self._status = self._status.outcome, await self._done(steps.close_batch(task))
        if self._status.phase is not decided:  # the batch had already ended before its workflow was reset
            self._show(self._status.phase)
        self._write_memo()
        self._describe()

    async def _end(self) -> BatchStatus:
        """End the run in the way that makes Temporal show the outcome."""
        phase = self._status.phase
        if phase is BatchPhase.CANCELLED:
            if not self._run_is_cancelled:
                await workflow.wait_condition(lambda: False)  # until Temporal cancels it, as ``close_batch`` requested
            raise asyncio.CancelledError
        if phase is not BatchPhase.COMPLETED:
            reason = end_reason(self._spec, self._status)
            raise ApplicationError(reason, type=f"Batch{phase.capitalize()}", category=ApplicationErrorCategory.BENIGN)
        return self._status

    # State that is visible from outside

    def _update(self, **changes: object) -> None:
        self._status = self._status.model_copy(update=changes)
        self._describe()

    def _note(self, kind: EventType, message: str) -> None:
        event = NotedEvent(at=self._now(), type=kind, message=message)
        self._update(history=self._status.history.with_event(event))

    def _set_phase(self, phase: BatchPhase) -> None:
        self._update(phase=phase)
        self._show(phase)
        self._write_memo()

    def _show(self, phase: BatchPhase) -> None:
        workflow.upsert_search_attributes(  # pyright: ignore[reportUnknownMemberType] - the SDK leaves a type open
            [contract.STATUS_ATTRIBUTE.value_set(phase.value)]
        )

    def _write_memo(self) -> None:
        self._memo_at = workflow.time()
        workflow.upsert_memo({contract.MEMO_STATUS: BatchMemo.of(self._status, int(self._memo_at))})

    def _describe(self) -> None:
        workflow.set_current_details(batch_details(self._spec, self._status, self._upstreams))

    def _now(self) -> int:
        return int(workflow.time())
