"""The inputs and results of the workflows, activities, signals and queries, as they pass through Temporal.

They hold references, counts and short bounded texts, and never request or response bodies. New fields need defaults and
fields are never renamed, because the histories of running batches contain these models.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from workflows.batch_settings import BatchSettings
from workflows.error_summary import ErrorCount
from workflows.events import History, PastWait
from workflows.ids import BatchRef
from workflows.waits import Wait


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class BatchModel(Model):
    """A model that belongs to one batch."""

    batch_id: str
    tenant: str

    @property
    def ref(self) -> BatchRef:
        return BatchRef(self.tenant, self.batch_id)


class BatchPhase(StrEnum):
    """The status values of the OpenAI batch object."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_PHASES


TERMINAL_PHASES = frozenset({BatchPhase.COMPLETED, BatchPhase.FAILED, BatchPhase.EXPIRED, BatchPhase.CANCELLED})


class BatchSpec(BatchModel, BatchSettings):
    """Everything that a run depends on, including limits and rules: workflow code cannot read settings."""

    input_file_id: str
    endpoint: str
    completion_window: str
    """The completion window as the client wrote it, for example ``24h``."""
    window_seconds: int
    created_ms: int
    """Unix time in milliseconds, because seconds are too coarse to sort a list of batches by."""
    digest: str
    """Digest of the create parameters except the file. Together they tell a repeated create from a conflicting one."""
    input_sha256: str = ""
    """SHA-256 of the input file's content, if an idempotency key covers it; empty if unknown."""
    metadata: dict[str, str] | None = None
    output_expires_after: int = 30 * 24 * 3600
    """Lifetime of the result files in seconds, counted from their creation."""
    webhooks: list[str] = []
    """Names of the endpoints that are notified when the batch ends."""
    retry_of: str = ""
    """The batch whose failed requests this one sends again, and whose other lines it takes over."""
    retry_codes: list[str] = []
    """Error codes of the requests to send again; empty means all failed requests."""
    inline_requests: int = 0
    """Number of requests in the create call itself. The input file made of them is deleted with the batch."""

    @property
    def created_at(self) -> int:
        return self.created_ms // 1000

    @property
    def expires_at(self) -> int:
        return self.created_at + self.window_seconds

    def is_same_create_as(self, other: BatchSpec) -> bool:
        """Return whether two creates are the same. Input files are compared by content, or by id if that is unknown."""
        if self.digest != other.digest:
            return False
        if self.input_sha256 and other.input_sha256:
            return self.input_sha256 == other.input_sha256
        return self.input_file_id == other.input_file_id


class Usage(Model):
    """Token counts, named as in the OpenAI batch object."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: count + getattr(other, name) for name, count in self})


class Counts(Model):
    total: int = 0
    completed: int = 0
    failed: int = 0
    unanswered: int = 0
    """Number of the failed requests that had no answer when the batch ended. Only known once it has ended."""


class BatchError(Model):
    """One reason why a batch as a whole failed; ``line`` counts physical lines from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Shard(NamedTuple):
    """Requests that one activity runs, all for one upstream. Serialized for Temporal as an array of numbers.

    A shard is a range of input lines or, if the batch is not sent in input order, a range of entries of its sending
    order (:mod:`activities.records.sending_order`).
    """

    offset: int
    """Start in bytes, from the start of the input or of the sending order."""
    length: int
    """Total bytes of its lines in the input, including their line ends."""
    first_line: int
    """Physical line number, from 1, of the request that is sent first."""
    requests: int
    """Number of requests in the shard. Blank lines are not counted."""
    upstream: int = 0
    """Index of its upstream in :attr:`ValidateResult.upstreams`."""


class ValidateResult(Model):
    """The shards of a valid batch, or the ``errors`` of an invalid one."""

    errors: list[BatchError] = []
    errors_total: int = 0
    """Number of errors found; ``errors`` has the first hundred of them."""
    model: str | None = None
    """The model, if all requests name the same one."""
    total: int = 0
    """Number of requests to send."""
    kept: Counts = Counts()
    """Counts of the requests whose results a retry takes over from the batch that it retries."""
    kept_errors: list[ErrorCount] = []
    finished_at: int = 0
    """Unix time in seconds."""
    shards: list[Shard] = []
    upstreams: list[str] = []
    """Names of the upstreams that the shards are for; empty means the default upstream."""
    cut: str = ""
    """Digest that identifies this division into shards. Their committed results are stored under it."""
    labels: list[str] = []
    """A label for each shard, for people, or empty if the batch is large: the ``custom_id`` of a single request, or the
    line range and the first and last ``custom_id`` of several, shortened."""
    has_order: bool = False
    """Whether the shards are ranges of a sending order rather than of the input."""
    has_ended: bool = False
    """Whether the batch had already ended, in a run of its workflow that was reset. Then nothing else was done."""

    @property
    def counts(self) -> Counts:
        """The counts of the batch before any request is sent."""
        return self.kept.model_copy(update={"total": self.kept.total + self.total})


class RunRequestsInput(BatchModel):
    endpoint: str
    index: int
    """Index of the shard, from 0."""
    model: str = ""
    """The model of all requests of the batch; empty if they name several."""
    shard: Shard
    max_attempts: int
    max_line_bytes: int = 64 << 20
    strict_error_lines: bool = False
    cut: str = ""
    """See :attr:`ValidateResult.cut`."""
    has_order: bool = False
    """See :attr:`ValidateResult.has_order`."""


class ShardResult(Model):
    """The result of a finished shard, whose answers are in ``results/<cut>/<shard>/<attempt>``."""

    attempt: str
    """Empty if the batch had already ended, so that nothing was done."""
    completed: int
    failed: int
    usage: Usage = Usage()
    failures: str = ""
    """Reasons for which requests failed in the attempt that finished the shard, the most frequent one first."""
    errors: list[ErrorCount] = []
    waits: list[PastWait] = []


class ShardProgress(Model):
    """The heartbeat details of a running shard. They may be read by another version than that of the worker that sent
    them, so every field has a default.
    """

    completed: int = 0
    """Number of committed requests, like ``failed``."""
    failed: int = 0
    in_flight: int = 0
    limit: int | None = None
    """Maximum number of requests that its worker currently sends to the upstream at once."""
    wait: Wait | None = None
    """The reason why its answers cannot be stored, or why its requests are not sent or answered."""
    has_ended: bool = False
    """Whether this is the last heartbeat of its attempt. An attempt without one was lost with its worker."""
    losses: int = 0
    """Number of earlier attempts that were lost with their workers."""
    errors: list[ErrorCount] = []
    """Errors of the committed requests."""
    waits: list[PastWait] = []
    done_at: float | None = None
    """Unix time of the last commit, in seconds."""
    oldest_seconds: float = 0.0
    """Seconds for which its oldest request in flight has been in flight."""


class MissingReason(StrEnum):
    """Why requests got no answer. The values are the codes of their error lines."""

    EXPIRED = "batch_expired"
    CANCELLED = "batch_cancelled"
    FAILED = "batch_failed"


class PauseShardsInput(Model):
    batch_id: str
    paused: bool


class DeleteExpiredInput(Model):
    limit: int = 10_000
    """Maximum number of objects that one attempt inspects."""


class DeleteExpiredResult(Model):
    """What one activity of the janitor did or, as the result of its workflow, what all of them did."""

    files: int = 0
    """Number of files deleted because they expired or because nothing refers to them. The same for ``uploads``."""
    uploads: int = 0
    batches: int = 0
    """Number of batches whose leftovers were deleted. Their records stay."""
    closed: int = 0
    """Number of batches with a terminated or lost workflow, which now end as cancelled with the answers they have."""
    kept: int = 0
    """Number of objects that were inspected but are not due yet."""
    failed: int = 0
    """Number of objects that could not be inspected; the worker logs the reason. They are retried in an hour."""
    more: bool = False
    """Whether the limit was reached before all objects were inspected."""

    def __add__(self, other: DeleteExpiredResult) -> DeleteExpiredResult:
        sums = {name: count + getattr(other, name) for name, count in self}
        return DeleteExpiredResult(**sums | {"more": other.more})


class BatchStatus(Model):
    """The status of a batch: the answer to the ``status`` query, the result of the workflow, and part of the record."""

    phase: BatchPhase = BatchPhase.VALIDATING
    """Only terminal in the final record."""
    outcome: BatchPhase | None = None
    """The terminal phase, once it is decided. From then on it is too late to cancel the batch."""
    counts: Counts = Counts()
    """Counts of finished shards. Those of running shards are in their heartbeats."""
    usage: Usage = Usage()
    model: str | None = None
    errors: list[BatchError] = []
    errors_total: int = 0
    error_summary: list[ErrorCount] = []
    """Errors of the failed requests in ``counts``."""
    history: History = History()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    paused_at: int | None = None
    """Unix time in seconds since which the batch is paused, if it is."""
    finished_shards: str = ""
    """Indexes as ranges, for example ``0-16,18``, so that a reader of heartbeats counts each shard once."""
    shards_total: int = 0
    rate_since: float | None = None
    """Unix time in seconds at which the batch began to send requests, or resumed after a pause."""
    rate_done: int | None = None
    """Number of requests finished at ``rate_since``. Unknown after a pause, because heartbeats arrive later."""
    rate_at: float | None = None
    """Unix time in seconds at which the most recent shard was finished."""

    @property
    def ended_at(self) -> int | None:
        """Unix time in seconds at which the batch reached its terminal phase, if it has."""
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at


class BatchMemo(Model):
    """The status of a run that can be read without a worker. Rarely updated, because each update is a history event."""

    written_at: int
    """Unix time in seconds. Shards that finished later are not in the counts."""
    phase: BatchPhase
    counts: Counts
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None
    paused_at: int | None = None
    finished_shards: str = ""
    model: str | None = None
    error_summary: list[ErrorCount] = []
    rate_since: float | None = None
    rate_done: int | None = None
    rate_at: float | None = None

    @classmethod
    def of(cls, status: BatchStatus, written_at: int) -> BatchMemo:
        return cls(written_at=written_at, **{name: getattr(status, name) for name in cls._of_status()})

    def over(self, status: BatchStatus) -> BatchStatus:
        """Return ``status`` updated with this memo, except that ``cancelling_at`` stays if only ``status`` has it."""
        known = {name: getattr(self, name) for name in self._of_status()}
        return status.model_copy(update=known | {"cancelling_at": self.cancelling_at or status.cancelling_at})

    @classmethod
    def _of_status(cls) -> set[str]:
        return cls.model_fields.keys() - {"written_at"}


class BatchRecord(Model):
    """The store's record of a batch, which is used while Temporal is down and after Temporal's retention period."""

    spec: BatchSpec
    status: BatchStatus
    error_messages: dict[str, str] = {}
    """One message for each error code of a batch that has ended. These never enter Temporal."""
    keep_leftovers_until: int | None = None
    """Unix time in seconds until which the objects of a run are kept, if its result files could not be written."""
    deleted_at: int | None = None
    """Unix time in seconds. The record of a deleted batch stays, so that nothing can recreate the batch."""
