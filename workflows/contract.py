"""The contract between workflows and activities: names, stubs, task queues, timeouts and retry policies.

The stubs let workflows call activities by type without importing them. Each implementation subclasses its stub
and decorates the method again with the same name; ``tests/unit/test_contract.py`` checks that the two agree.
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
"""Anthropic's endpoint. Batches for it also appear in Anthropic's Message Batches API."""

TENANT_ATTRIBUTE = SearchAttributeKey.for_keyword("BatchTenant")
ENDPOINT_ATTRIBUTE = SearchAttributeKey.for_keyword("BatchEndpoint")
STATUS_ATTRIBUTE = SearchAttributeKey.for_keyword("BatchStatus")

DEFAULT_TASK_QUEUE = "everbatch"

MAX_RETRY_DELAY = timedelta(minutes=15)
"""The longest ``Retry-After`` that is honoured. Temporal clamps ``next_retry_delay`` to the policy's maximum."""

SHARD_RETRY = RetryPolicy(
    # An attempt that ends by itself sets the delay of the next one, so this interval applies only after a worker died
    # or hit a bug. A delay that grew with the number of attempts, of which an outage causes many, would leave the
    # shards of a killed worker waiting for minutes.
    initial_interval=timedelta(seconds=2),
    backoff_coefficient=1.0,
    maximum_interval=MAX_RETRY_DELAY,
    maximum_attempts=0,  # deployments and crashes use up attempts too; only the completion window ends a batch
)

STEP_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=0,
)
"""Retry policy of every activity except requests and webhooks. They fail only while the store or Temporal is down."""

PAUSE_TIMEOUT = timedelta(seconds=10)
CLOSE_TIMEOUT = timedelta(minutes=10)
VALIDATE_TIMEOUT = timedelta(hours=2)
WRITE_TIMEOUT = timedelta(hours=6)
DELETE_TIMEOUT = timedelta(hours=1)
"""The five timeouts above each limit one attempt. Except in ``pause_shards``, heartbeats find a dead worker sooner."""

DELIVER_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=2),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(hours=1),
    maximum_attempts=0,
)
DELIVER_WITHIN = timedelta(hours=72)
DELIVER_TIMEOUT = timedelta(seconds=20)
"""Timeout of one delivery attempt, within which the endpoint has ten seconds to respond."""

WRONG_ROUTE = "WrongRoute"
"""Error type with which a shard fails the whole batch because its first requests all got the same 404."""

DEFAULT_UPSTREAM = "default"

FIRST_SUFFIX = ":first"
"""Suffix of the task queue for first shards. Upstream names cannot contain a colon, so it cannot collide with one."""


def inference_task_queue(task_queue: str) -> str:
    """Return the task queue for requests, which is separate so that no workflow task waits behind a model."""
    return f"{task_queue}-inference"


def upstream_task_queue(inference_queue: str, upstream: str) -> str:
    """Return the task queue of an upstream. Each has its own, so that no request waits behind another upstream.

    In one shared queue, workers would take the shards of an upstream that is down over and over, only to hand them
    back, or those shards would block the head of the queue for everyone.
    """
    return inference_queue if upstream == DEFAULT_UPSTREAM else f"{inference_queue}-{upstream}"


def first_task_queue(queue: str) -> str:
    """Return the task queue for small batches and for the first shard of large ones, beside ``queue``.

    A worker that a large batch keeps full still accepts shards from this queue, and serves them in turn with the
    shards that it already has.
    """
    return queue + FIRST_SUFFIX


def control_task_queue(task_queue: str) -> str:
    """Return the task queue for short, urgent activities, so that they do not wait behind hours of writing files."""
    return f"{task_queue}-control"


def webhook_task_queue(task_queue: str) -> str:
    """Return the task queue for webhooks: an endpoint that does not respond occupies a slot until the timeout."""
    return f"{task_queue}-webhooks"


class ValidateInputStub:
    @activity.defn(name=VALIDATE_INPUT)
    async def validate_input(self, spec: BatchSpec) -> ValidateResult:
        """Check every line of the input once and divide it into shards.

        Invalid input is a result, not an exception: the batch fails, but the activity does not.
        """
        raise NotImplementedError


class RunRequestsStub:
    @activity.defn(name=RUN_REQUESTS)
    async def run_requests(self, task: RunRequestsInput) -> ShardResult:
        """Send each unfinished request of a shard once and commit every final answer.

        Raises:
            ApplicationError: some requests must be sent again; the retry policy schedules another attempt at the shard.
        """
        raise NotImplementedError


class WriteFilesStub:
    @activity.defn(name=WRITE_FILES)
    async def write_files(self, task: WriteFilesInput) -> MergedFiles:
        """Merge the committed answers into the output and error files. The workflow decides the batch's outcome."""
        raise NotImplementedError


class CloseBatchStub:
    @activity.defn(name=CLOSE_BATCH)
    async def close_batch(self, task: CloseBatchInput) -> BatchStatus:
        """Write the final record of a batch, start its webhooks, and delete objects that only a running batch needs.

        The activity is idempotent. The first final record counts, so a batch whose workflow is reset after its end
        ends with the same status again.

        Returns:
            The status in the final record.
        """
        raise NotImplementedError


class DeleteExpiredStub:
    @activity.defn(name=DELETE_EXPIRED)
    async def delete_expired(self, task: DeleteExpiredInput) -> DeleteExpiredResult:
        """Delete objects that are due and that no client can request any more. The activity is idempotent."""
        raise NotImplementedError


class DeliverWebhookStub:
    @activity.defn(name=DELIVER_WEBHOOK)
    async def deliver_webhook(self, task: DeliverWebhookInput) -> DeliverWebhookResult:
        """Send one event to one endpoint, once.

        Raises:
            ApplicationError: the endpoint did not accept the event. The retry policy schedules another attempt, unless
                the endpoint's address is not allowed.
        """
        raise NotImplementedError


class PauseShardsStub:
    @activity.defn(name=PAUSE_SHARDS)
    async def pause_shards(self, task: PauseShardsInput) -> None:
        """Pause or resume all pending shards of a batch. The activity is idempotent."""
        raise NotImplementedError
