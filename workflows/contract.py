"""The contract between workflows and activities: names, stubs, task queues, timeouts and retry policies.

The stubs let workflows call activities by type without importing them. Implementations subclass the stub
and re-decorate the method with the same name; ``tests/unit/test_contract.py`` holds them together.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity
from temporalio.common import RetryPolicy, SearchAttributeKey

from workflows.end_types import CloseBatchInput, MergedFiles, WriteFilesInput
from workflows.types import (
    BatchSpec,
    BatchStatus,
    DeleteExpiredInput,
    DeleteExpiredResult,
    PauseShardsInput,
    RunRequestsInput,
    ShardResult,
    ValidateResult,
)
from workflows.webhook_types import DeliverWebhookInput, DeliverWebhookResult

BATCH_WORKFLOW = "Batch"
JANITOR_WORKFLOW = "Janitor"
WEBHOOK_WORKFLOW = "Webhook"
READY_WORKFLOW = "Ready"
STATUS_QUERY = "status"
CANCEL_SIGNAL = "cancel"
PAUSE_SIGNAL = "pause"
RESUME_SIGNAL = "resume"

VALIDATE_INPUT = "validate_input"
RUN_REQUESTS = "run_requests"
WRITE_FILES = "write_files"
CLOSE_BATCH = "close_batch"
PAUSE_SHARDS = "pause_shards"
DELETE_EXPIRED = "delete_expired"
DELIVER_WEBHOOK = "deliver_webhook"

WEBHOOK_EVENTS = ("batch.completed", "batch.failed", "batch.cancelled", "batch.expired")

MEMO_STATUS = "status"

MESSAGES_ENDPOINT = "/v1/messages"
"""Anthropic's, whose batches its Message Batches API shows too."""

TENANT_ATTRIBUTE = SearchAttributeKey.for_keyword("BatchTenant")
ENDPOINT_ATTRIBUTE = SearchAttributeKey.for_keyword("BatchEndpoint")
STATUS_ATTRIBUTE = SearchAttributeKey.for_keyword("BatchStatus")

DEFAULT_TASK_QUEUE = "everbatch"

MAX_RETRY_DELAY = timedelta(minutes=15)
"""Longest ``Retry-After`` that is honoured: Temporal clamps ``next_retry_delay`` to the policy's maximum."""

SHARD_RETRY = RetryPolicy(
    # An attempt that ends by itself says when to try again. What is left is a worker that died, or a bug: a delay that
    # grew with the attempts, of which an outage makes many, would have the shards of a killed worker wait for minutes.
    initial_interval=timedelta(seconds=2),
    backoff_coefficient=1.0,
    maximum_interval=MAX_RETRY_DELAY,
    maximum_attempts=0,  # attempts are also spent by deploys and crashes; the window is what ends a batch
)

STEP_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=0,
)
"""For everything but requests and webhooks: it fails only while the store or Temporal is down."""

PAUSE_TIMEOUT = timedelta(seconds=10)
CLOSE_TIMEOUT = timedelta(minutes=10)
VALIDATE_TIMEOUT = timedelta(hours=2)
WRITE_TIMEOUT = timedelta(hours=6)
DELETE_TIMEOUT = timedelta(hours=1)
"""Of one attempt. Heartbeats, not these, tell whether a worker lives."""

DELIVER_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=2),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(hours=1),
    maximum_attempts=0,
)
DELIVER_WITHIN = timedelta(hours=72)
DELIVER_TIMEOUT = timedelta(seconds=20)
"""Of one attempt, which gives the endpoint ten."""

WRONG_ROUTE = "WrongRoute"
"""Type of the error with which a shard ends a batch whose first requests all got the same 404."""

DEFAULT_UPSTREAM = "default"

FIRST_SUFFIX = ":first"
"""With a colon, which no name of an upstream has."""


def inference_task_queue(task_queue: str) -> str:
    """Inference has a queue of its own, so that no workflow waits behind a model."""
    return f"{task_queue}-inference"


def upstream_task_queue(inference_queue: str, upstream: str) -> str:
    """Each upstream has one of its own, so that no request waits behind an engine that it is not for.

    In one queue for all, the shards of an engine that is down would be taken by workers again and again, only to be
    handed back, or else stand in front of everybody's.
    """
    return inference_queue if upstream == DEFAULT_UPSTREAM else f"{inference_queue}-{upstream}"


def first_task_queue(queue: str) -> str:
    """Small batches, and the first shard of large ones, have one beside their upstream's: a worker that is full of a
    large batch still takes them in, and serves them in turn with what it has.
    """
    return queue + FIRST_SUFFIX


def control_task_queue(task_queue: str) -> str:
    """What is short and urgent has one, so that it does not wait behind hours of writing files."""
    return f"{task_queue}-control"


def webhook_task_queue(task_queue: str) -> str:
    """Webhooks have one too: an endpoint that does not answer holds a slot for as long as it may."""
    return f"{task_queue}-webhooks"


class ValidateInputStub:
    @activity.defn(name=VALIDATE_INPUT)
    async def validate_input(self, spec: BatchSpec) -> ValidateResult:
        """Check every line of the input once and cut it into shards.

        Bad input is a result, not an exception: the batch fails, the activity does not.
        """
        raise NotImplementedError


class RunRequestsStub:
    @activity.defn(name=RUN_REQUESTS)
    async def run_requests(self, task: RunRequestsInput) -> ShardResult:
        """Send each unfinished request of a shard once and commit every final answer.

        Raises:
            ApplicationError: some requests must be tried again; the retry policy brings the shard back.
        """
        raise NotImplementedError


class WriteFilesStub:
    @activity.defn(name=WRITE_FILES)
    async def write_files(self, task: WriteFilesInput) -> MergedFiles:
        """Merge what is committed into the output and error file. What the batch ends as is not decided here."""
        raise NotImplementedError


class CloseBatchStub:
    @activity.defn(name=CLOSE_BATCH)
    async def close_batch(self, task: CloseBatchInput) -> BatchStatus:
        """Write the final record of a batch, tell its webhooks, and remove what only a running batch needs.

        Doing it again changes nothing. The first final record counts, so a batch that had ended already, and whose
        workflow was reset, ends as it did.

        Returns:
            The status in the final record.
        """
        raise NotImplementedError


class DeleteExpiredStub:
    @activity.defn(name=DELETE_EXPIRED)
    async def delete_expired(self, task: DeleteExpiredInput) -> DeleteExpiredResult:
        """Delete what the janitor was reminded of and nobody can ask for any more. Doing it again changes nothing."""
        raise NotImplementedError


class DeliverWebhookStub:
    @activity.defn(name=DELIVER_WEBHOOK)
    async def deliver_webhook(self, task: DeliverWebhookInput) -> DeliverWebhookResult:
        """Send one event to one endpoint, once.

        Raises:
            ApplicationError: it was not taken; the retry policy brings it back, unless the endpoint may not be told.
        """
        raise NotImplementedError


class PauseShardsStub:
    @activity.defn(name=PAUSE_SHARDS)
    async def pause_shards(self, task: PauseShardsInput) -> None:
        """Make all pending shards of a batch wait, or let them go on. Doing it again changes nothing."""
        raise NotImplementedError
