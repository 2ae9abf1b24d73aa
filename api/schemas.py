"""The shapes of OpenAI's Files and Batches API. Answers hold every key, ``null`` where there is nothing to say."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Header
from pydantic import BaseModel, ConfigDict, Field

from activities.catalog import FileRecord
from api.views import BatchView, Progress
from workflows.types import BatchPhase, BatchStatus

Endpoint = Literal[
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class _Strict(BaseModel):
    # A number is no string: what a client meant by `metadata: {"user": 7}` is not ours to guess.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class ExpiresAfter(_Strict):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class CreateBatch(_Strict):
    input_file_id: str = Field(min_length=1, max_length=255)
    endpoint: Endpoint
    completion_window: str
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None
    idempotency_key: str | None = Field(None, min_length=1, max_length=255)
    """The header `Idempotency-Key` wins over it."""


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchErrorItem(BaseModel):
    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchErrorItem]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class BatchUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Batch(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None
    progress: Progress | None
    """Not OpenAI's: how the batch gets on."""


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorDetail


def file_object(record: FileRecord) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_ms // 1000,
        expires_at=record.expires_at,
        filename=record.filename,
        purpose=record.purpose,
    )


def file_list(records: list[FileRecord], has_more: bool) -> FileList:
    data = [file_object(record) for record in records]
    return FileList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more
    )


def batch_list(views: list[BatchView], has_more: bool) -> BatchList:
    data = [batch_object(view) for view in views]
    return BatchList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more
    )


def batch_object(view: BatchView) -> Batch:
    spec, status = view.record.spec, view.record.status
    return Batch(
        id=spec.batch_id,
        endpoint=spec.endpoint,
        model=status.model,
        errors=_errors(status),
        input_file_id=spec.input_file_id,
        completion_window=spec.completion_window,
        status=_phase(status).value,
        output_file_id=status.output_file_id,
        error_file_id=status.error_file_id,
        created_at=spec.created_at,
        in_progress_at=status.in_progress_at,
        expires_at=spec.expires_at,
        finalizing_at=status.finalizing_at,
        completed_at=status.completed_at,
        failed_at=status.failed_at,
        expired_at=status.expired_at,
        cancelling_at=status.cancelling_at,
        cancelled_at=status.cancelled_at,
        request_counts=RequestCounts(
            total=status.counts.total, completed=status.counts.completed, failed=status.counts.failed
        ),
        usage=_usage(status),
        metadata=spec.metadata,
        progress=view.progress,
    )


def _phase(status: BatchStatus) -> BatchPhase:
    """A batch that was asked to stop says so, whatever it is still busy with."""
    if status.cancelling_at is not None and not status.phase.is_terminal:
        return BatchPhase.CANCELLING
    return status.phase


def _errors(status: BatchStatus) -> BatchErrors | None:
    if not status.errors:
        return None
    items = [
        BatchErrorItem(code=error.code, message=error.message, param=error.param, line=error.line)
        for error in status.errors
    ]
    return BatchErrors(data=items)


def _usage(status: BatchStatus) -> BatchUsage:
    usage = status.usage
    return BatchUsage(
        input_tokens=usage.input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.input_tokens + usage.output_tokens,
    )
