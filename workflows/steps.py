"""The steps of a batch other than its requests. Each function runs one activity with the options that it needs."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority

with workflow.unsafe.imports_passed_through():
    from workflows import contract
    from workflows.details import cut
    from workflows.end_types import CloseBatchInput, MergedFiles, WriteFilesInput
    from workflows.fairness import tenant_key
    from workflows.types import BatchPhase, BatchSpec, BatchStatus, PauseShardsInput, ValidateResult


async def validate_input(spec: BatchSpec) -> ValidateResult:
    return await workflow.execute_activity_method(
        contract.ValidateInputStub.validate_input,
        spec,
        activity_id="validate",
        start_to_close_timeout=contract.VALIDATE_TIMEOUT,
        heartbeat_timeout=timedelta(seconds=spec.heartbeat_timeout),
        retry_policy=contract.STEP_RETRY,
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=cut(f"check {spec.input_file_id}"),
        priority=_priority(spec),
    )


async def pause_shards(task: PauseShardsInput) -> None:
    await workflow.execute_activity_method(
        contract.PauseShardsStub.pause_shards,
        task,
        task_queue=contract.control_task_queue(workflow.info().task_queue),
        start_to_close_timeout=contract.PAUSE_TIMEOUT,
        retry_policy=contract.STEP_RETRY,
        summary="pause the shards" if task.paused else "resume the shards",
    )


async def write_files(task: WriteFilesInput, outcome: BatchPhase) -> MergedFiles:
    return await workflow.execute_activity_method(
        contract.WriteFilesStub.write_files,
        task,
        activity_id="write-files",
        start_to_close_timeout=contract.WRITE_TIMEOUT,
        heartbeat_timeout=timedelta(seconds=task.spec.heartbeat_timeout),
        retry_policy=contract.STEP_RETRY,
        cancellation_type=workflow.ActivityCancellationType.ABANDON,
        summary=f"write result files: {outcome}",
        priority=_priority(task.spec),
    )


async def close_batch(task: CloseBatchInput) -> BatchStatus:
    return await workflow.execute_activity_method(
        contract.CloseBatchStub.close_batch,
        task,
        task_queue=contract.control_task_queue(workflow.info().task_queue),
        activity_id="close",
        start_to_close_timeout=contract.CLOSE_TIMEOUT,
        heartbeat_timeout=timedelta(seconds=task.spec.heartbeat_timeout),
        retry_policy=contract.STEP_RETRY,
        cancellation_type=workflow.ActivityCancellationType.ABANDON,
        summary=f"close the batch: {task.status.outcome}",
        priority=_priority(task.spec),
    )


def _priority(spec: BatchSpec) -> Priority:
    return Priority(fairness_key=tenant_key(spec.tenant), fairness_weight=spec.fairness_weight)
