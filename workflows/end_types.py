"""The models of the activities that end a batch: see :mod:`workflows.types` for the rules that they keep."""

from __future__ import annotations

from pydantic import Field

from workflows.error_summary import ErrorCount
from workflows.events import PastWait
from workflows.types import BatchError, BatchSpec, BatchStatus, Counts, MissingReason, Model, Usage


class WriteFilesInput(Model):
    spec: BatchSpec
    attempts: list[str | None] = Field(default_factory=list[str | None])
    """For each shard the attempt whose object counts; ``None`` if it did not finish."""
    missing: MissingReason = MissingReason.FAILED
    cut: str = ""
    """As :attr:`ValidateResult.cut`; empty where no shard was run. An earlier run may have left answers even so."""
    is_checked: bool = True
    """Whether this run had its input checked. One that only closes the batch did not."""


class MergedFiles(Model):
    """What was merged into the result files of a batch."""

    counts: Counts = Counts()
    usage: Usage = Usage()
    error_summary: list[ErrorCount] = Field(default_factory=list[ErrorCount])
    waits: list[PastWait] = Field(default_factory=list[PastWait])
    """Of the shards that did not finish."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[BatchError] = Field(default_factory=list[BatchError])
    """Why the files could not be written, if so."""
    model: str | None = None
    """Where an earlier run had the input checked: what that found; as ``in_progress_at``."""
    in_progress_at: int | None = None


class CloseBatchInput(Model):
    spec: BatchSpec
    status: BatchStatus
    """With the outcome that the workflow has decided on."""
    keep_answers: bool = False
    """Whether committed answers stay in the store, because no result files could be written from them."""
    run_is_cancelled: bool = False
    """Whether Temporal has cancelled the run. Unless it has, a run cannot end as ``Canceled``."""
