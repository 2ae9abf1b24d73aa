"""The models of the activities that end a batch. They follow the rules in :mod:`workflows.types`."""

from __future__ import annotations

from pydantic import Field

from workflows.error_summary import ErrorCount
from workflows.events import PastWait
from workflows.types import BatchError, BatchSpec, BatchStatus, Counts, MissingReason, Model, Usage


class WriteFilesInput(Model):
    spec: BatchSpec
    attempts: list[str | None] = Field(default_factory=list[str | None])
    """For each shard, the attempt whose result object counts, or ``None`` if the shard did not finish."""
    missing: MissingReason = MissingReason.FAILED
    cut: str = ""
    """See :attr:`ValidateResult.cut`. Empty if this run started no shards; an earlier run may still have committed
    answers."""
    is_checked: bool = True
    """Whether this run started the validation of the input. A run that only closes the batch does not."""


class MergedFiles(Model):
    """The contents of the result files of a batch."""

    counts: Counts = Counts()
    usage: Usage = Usage()
    error_summary: list[ErrorCount] = Field(default_factory=list[ErrorCount])
    waits: list[PastWait] = Field(default_factory=list[PastWait])
    """Waits of the shards that did not finish."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[BatchError] = Field(default_factory=list[BatchError])
    """The reasons why the files could not be written; empty if they were."""
    model: str | None = None
    """The model that an earlier run of the workflow found when it validated the input, if this run did not."""
    in_progress_at: int | None = None
    """Unix time in seconds at which that earlier validation ended."""


class CloseBatchInput(Model):
    spec: BatchSpec
    status: BatchStatus
    """The status, including the outcome that the workflow has decided on."""
    keep_answers: bool = False
    """Whether to keep the committed answers in the store because the result files could not be written from them."""
    run_is_cancelled: bool = False
    """Whether Temporal has cancelled the run. Only such a run can end as ``Canceled``."""
