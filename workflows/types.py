"""The models that cross Temporal: one in, one out, for each workflow, activity, signal and query.

References, counts and short bounded texts only; request and response bodies never. Fields are added with
defaults and never renamed: histories of running batches hold these shapes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from workflows.error_summary import ErrorCount
from workflows.events import History, PastWait
from workflows.nested import SETTINGS_OF_SPEC, NestedSettings
from workflows.waits import Wait


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


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


class BatchSpec(Model, NestedSettings):
    """Everything that a run depends on. Workflow code reads no settings, so limits and rules are recorded here."""

    NESTED = SETTINGS_OF_SPEC

    batch_id: str
    tenant: str
    input_file_id: str
    endpoint: str
    completion_window: str
    """As the client wrote it, for example ``24h``."""
    window_seconds: int
    created_ms: int
    """Unix time in milliseconds. Seconds are not enough to order a list by."""
    digest: str
    """Of the create parameters but the file; with the file's, tells a repeated create from a conflicting one."""
    input_sha256: str = ""
    """Of the input file's content, where an idempotency key stands for it; empty where it is not known."""
    metadata: dict[str, str] | None = None
    output_expires_after: int = 30 * 24 * 3600
    """Lifetime of the result files in seconds, counted from their creation."""
    max_requests: int = 50_000
    max_input_bytes: int = 209_715_200
    max_line_bytes: int = 64 << 20
    """A request in a longer line is not sent: it becomes an error line."""
    max_attempts: int = 5
    """Counted failures after which one request becomes an error line."""
    unknown_model: Literal["batch", "line"] = "batch"
    mixed_models: bool = True
    strict_error_lines: bool = False
    """Whether the error line of an HTTP answer leaves ``error`` null, as OpenAI's does."""
    heartbeat_timeout: float = 10.0
    """Seconds of silence after which an activity's worker counts as dead."""
    inference_task_queue: str = "everbatch-inference"
    counts_towards_limits: bool = False
    """Whether its tenant's running batches are counted, for the tenant's limits and its share."""
    max_queued_requests: int | None = None
    """In all running batches of the tenant together."""
    fairness_weight: float = 1.0
    """Of its tenant, whose running batches share it."""
    webhooks: list[str] = []
    """Names of the endpoints that hear of its end."""
    retry_of: str = ""
    """The batch whose failed requests this one sends again, and whose other lines it takes over."""
    retry_codes: list[str] = []
    """Of their errors; none stand for all."""
    inline_requests: int = 0
    """How many requests its create held itself; its input file was made of them and is deleted with it."""

    @property
    def created_at(self) -> int:
        return self.created_ms // 1000

    @property
    def expires_at(self) -> int:
        return self.created_at + self.window_seconds

    def asks_for_the_same_as(self, other: BatchSpec) -> bool:
        """Whether two creates under one idempotency key are one: by what the input file holds, where that is known."""
        if self.digest != other.digest:
            return False
        if self.input_sha256 and other.input_sha256:
            return self.input_sha256 == other.input_sha256
        return self.input_file_id == other.input_file_id


class Usage(Model):
    """Tokens, in the names of the OpenAI batch object."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


class Counts(Model):
    total: int = 0
    completed: int = 0
    failed: int = 0
    unanswered: int = 0
    """Of the failed ones, those that had no answer when the batch ended. Known from its end on."""


class BatchError(Model):
    """One reason why a batch as a whole failed; ``line`` counts physical lines from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Shard(NamedTuple):
    """Requests that one activity works through, all of them for one upstream. Crosses Temporal as an array of numbers.

    They are a run of input lines, or, in a batch that is not sent in input order, a run of entries of its sending order
    (:mod:`activities.records.sending_order`).
    """

    offset: int
    """Bytes from the start of the input, or of the sending order."""
    length: int
    """Bytes of its lines in the input, including their ends."""
    first_line: int
    """Physical line number of the request that is sent first, from 1."""
    requests: int
    """Lines that are requests of this shard; blank lines are not."""
    upstream: int = 0
    """Its index in :attr:`ValidateResult.upstreams`."""


class ValidateResult(Model):
    """Either ``errors`` (and nothing was made) or the shards."""

    errors: list[BatchError] = []
    errors_total: int = 0
    """All that were found; ``errors`` holds the first hundred."""
    model: str | None = None
    """The one model that all requests name, if they do."""
    total: int = 0
    """Requests to be sent."""
    kept: Counts = Counts()
    """Those that a retry takes over from the first batch, with what became of them."""
    kept_errors: list[ErrorCount] = []
    finished_at: int = 0
    """Unix seconds."""
    shards: list[Shard] = []
    upstreams: list[str] = []
    """Names of the upstreams that the shards are for; none stand for the default one."""
    cut: str = ""
    """Digest that names these shards: what is committed of them lies under it."""
    labels: list[str] = []
    """One per shard, for people, where the batch is not too large: a request by its ``custom_id``, a group by its lines
    and their first and last, cut."""
    has_order: bool = False
    """Whether the batch has a sending order, which its shards are runs of. Else they are runs of input lines."""
    has_ended: bool = False
    """Whether the batch has ended already, in a run of its workflow that was reset. Then nothing else was done."""

    @property
    def counts(self) -> Counts:
        """Of the batch, before anything is sent."""
        return self.kept.model_copy(update={"total": self.kept.total + self.total})


class RunRequestsInput(Model):
    batch_id: str
    tenant: str
    endpoint: str
    index: int
    """Of the shard, from 0."""
    model: str = ""
    """Of all requests of the batch; empty where there are several."""
    shard: Shard
    max_attempts: int
    max_line_bytes: int = 64 << 20
    strict_error_lines: bool = False
    cut: str = ""
    """As :attr:`ValidateResult.cut`."""
    has_order: bool = False
    """As :attr:`ValidateResult.has_order`."""


class ShardResult(Model):
    """The object that counts: ``results/<cut>/<shard>/<attempt>``."""

    attempt: str
    """Empty where the batch had ended already and nothing was done."""
    completed: int
    failed: int
    usage: Usage = Usage()
    failures: str = ""
    """Why requests failed in the attempt that finished the shard, the most frequent reason first."""
    errors: list[ErrorCount] = []
    waits: list[PastWait] = []


class ShardProgress(Model):
    """What a running shard says in its heartbeats. They outlive the worker that sent them, so every field has a
    default.
    """

    completed: int = 0
    """Committed; as ``failed``."""
    failed: int = 0
    in_flight: int = 0
    limit: int | None = None
    """How many requests its worker sends the upstream at once just now."""
    wait: Wait | None = None
    """What its answers wait for, to be stored, or its requests, to be sent or answered."""
    has_ended: bool = False
    """Whether this is the last word of its attempt. Where it is missing, the attempt was lost with its worker."""
    losses: int = 0
    """Attempts before this one that were lost so."""
    errors: list[ErrorCount] = []
    """Committed."""
    waits: list[PastWait] = []
    done_at: float | None = None
    """Unix time of the last commit."""
    oldest_seconds: float = 0.0
    """For which the oldest of its requests has been in flight."""


class MissingReason(StrEnum):
    """Why requests without an answer have none. The values are the codes of their error lines."""

    EXPIRED = "batch_expired"
    CANCELLED = "batch_cancelled"
    FAILED = "batch_failed"


class PauseShardsInput(Model):
    batch_id: str
    paused: bool


class DeleteExpiredInput(Model):
    limit: int = 10_000
    """Objects looked at in one attempt."""


class DeleteExpiredResult(Model):
    """What the janitor did; also the result of its workflow, then of all its activities."""

    files: int = 0
    """Deleted, because they have expired or nobody can name them; as ``uploads``."""
    uploads: int = 0
    batches: int = 0
    """Whose leftovers are gone. Their records stay."""
    closed: int = 0
    """Whose workflow was terminated or lost, and which now end as cancelled with the answers that they have."""
    kept: int = 0
    """Looked at and not due yet."""
    failed: int = 0
    """That could not be looked at; the log of the worker says why. They come again in an hour."""
    more: bool = False
    """Whether the limit was reached before the end."""

    def __add__(self, other: DeleteExpiredResult) -> DeleteExpiredResult:
        return DeleteExpiredResult(
            files=self.files + other.files,
            uploads=self.uploads + other.uploads,
            batches=self.batches + other.batches,
            closed=self.closed + other.closed,
            kept=self.kept + other.kept,
            failed=self.failed + other.failed,
            more=other.more,
        )


class BatchStatus(Model):
    """Answer of the ``status`` query, result of the workflow, and part of the record in the store."""

    phase: BatchPhase = BatchPhase.VALIDATING
    """Terminal in the final record only."""
    outcome: BatchPhase | None = None
    """The terminal phase, once it is decided: from then on a cancel comes too late."""
    counts: Counts = Counts()
    """Requests of finished shards; those of running shards are in their heartbeats."""
    usage: Usage = Usage()
    model: str | None = None
    errors: list[BatchError] = []
    errors_total: int = 0
    error_summary: list[ErrorCount] = []
    """Of the failed requests that are counted."""
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
    """Since when the batch is paused, if it is."""
    finished_shards: str = ""
    """As ranges, for example ``0-16,18``, so that a caller counts each shard once."""
    shards_total: int = 0
    rate_since: float | None = None
    """Unix time at which its requests were begun, or begun again after a pause …"""
    rate_done: int | None = None
    """… and how many were done then. Not known after a pause, as running shards tell it a while later."""
    rate_at: float | None = None
    """When the last of its shards was finished, in Unix time."""

    @property
    def ended_at(self) -> int | None:
        """When it came to its terminal state, if it has."""
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at


class BatchMemo(Model):
    """What can be read of a run while no worker is up. Kept coarse: each change is an event."""

    written_at: int
    """Unix seconds. What finished since then is not in the counts."""
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
        """A status with what this knows in its place, but for a cancel that only the status knows of."""
        known = {name: getattr(self, name) for name in self._of_status()}
        return status.model_copy(update=known | {"cancelling_at": self.cancelling_at or status.cancelling_at})

    @classmethod
    def _of_status(cls) -> set[str]:
        return cls.model_fields.keys() - {"written_at"}


class BatchRecord(Model):
    """The store's record of a batch: used while Temporal is down, and after its retention period."""

    spec: BatchSpec
    status: BatchStatus
    error_messages: dict[str, str] = {}
    """Of each code in the error summary of a batch that has ended, one. They never enter Temporal."""
    keep_leftovers_until: int | None = None
    """Unix seconds. The objects of a run stay so long if its result files could not be written from them."""
    deleted_at: int | None = None
    """Unix seconds. What is left of a deleted batch is this record, so that nothing brings the batch back."""
