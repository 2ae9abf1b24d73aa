"""The objects of OpenAI's Files, Uploads and Batches APIs. Responses contain every key, ``null`` if it is unset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast

from fastapi import Header
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from activities.records.catalog import FileRecord
from activities.records.uploads import UploadState, UploadStatus
from activities.webhooks import check_url, signing_key
from api.gateway.interface import BatchView, Progress
from workflows.ids import result_file_id
from workflows.types import BatchPhase, BatchStatus

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
RetryCount = Annotated[str | None, Header(alias="x-stainless-retry-count", include_in_schema=False)]
"""Number of times that OpenAI's SDK has sent this request before. The SDK sends no idempotency key."""
WebhookEvent = Literal["batch.completed", "batch.failed", "batch.cancelled", "batch.expired"]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class _Strict(BaseModel):
    # A number is not converted to a string: what a client means by `metadata: {"user": 7}` cannot be guessed.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


def _checked_url(url: str) -> str:
    try:
        return check_url(url)
    except ValueError as error:
        raise ValueError(f"the URL {error}") from None


def _signs(secret: str) -> str:
    signing_key(secret)
    return secret


class ExpiresAfter(_Strict):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class Webhook(_Strict):
    """A webhook that is called when this batch ends, as well as the operator's webhooks. This extends OpenAI's API."""

    url: Annotated[str, Field(max_length=2048), AfterValidator(_checked_url)]
    secret: Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_signs)]
    """The key that signs the calls, like the operator's secrets: `whsec_` followed by base64, or any text."""
    events: Annotated[list[WebhookEvent], Field(min_length=1)] | None = None


class CreateBatch(_Strict):
    # The order of the fields is the order in which errors are reported.
    input_file_id: str = Field(min_length=1, max_length=255)
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None
    webhook: Webhook | None = None
    idempotency_key: str | None = Field(None, min_length=1, max_length=255)
    """The header `Idempotency-Key` takes precedence over it."""


class RetryBatch(_Strict):
    codes: list[str] | None = None
    """The error codes whose requests are retried; `null` retries all failed requests."""
    webhook: Webhook | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=255)
    """The header `Idempotency-Key` takes precedence over it."""


def create_batch_model(endpoints: Sequence[str], windows: Sequence[str]) -> type[CreateBatch]:
    """Return the model with the choices that this server accepts, so that the OpenAPI document names them too."""

    def with_version(value: object) -> object:
        # Azure's clients leave the version out.
        return f"/v1{value}" if isinstance(value, str) and f"/v1{value}" in endpoints else value

    choice = cast("Any", Literal)
    fields: dict[str, Any] = {
        "endpoint": (Annotated[choice[tuple(endpoints)], BeforeValidator(with_version)], ...),
        "completion_window": (choice[tuple(windows)], ...),
    }
    return create_model("CreateBatch", __base__=CreateBatch, **fields)


class Listed(BaseModel):
    id: str


Item = TypeVar("Item", bound=Listed)


class Page(BaseModel, Generic[Item]):
    """A page of a list."""

    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[Item], *, has_more: bool) -> Self:
        first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first_id, last_id=last_id, has_more=has_more)


class ListPage(Page[Item], Generic[Item]):
    object: Literal["list"] = "list"


class FileObject(Listed):
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class UploadFields(_Strict):
    """The fields of a form beside its file."""

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CreateUpload(_Strict):
    bytes: int = Field(ge=0)
    filename: str = Field(min_length=1, max_length=255)
    mime_type: str = Field(min_length=1, max_length=255)
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteUpload(_Strict):
    part_ids: list[str]
    md5: str | None = None


class Upload(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: UploadStatus
    expires_at: int
    file: FileObject | None


class UploadPart(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileList(ListPage[FileObject]):
    pass


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


class ErrorSummaryItem(BaseModel):
    code: str
    """The error code. `other` stands for all codes that are not among the most frequent."""
    count: int
    first_lines: list[int]
    """Numbers of the first input lines with this error."""
    message: str | None
    """The message of one of these errors; `null` in lists of batches."""


class Batch(Listed):
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
    error_summary: list[ErrorSummaryItem] | None
    """Extends OpenAI's API: the errors of failed requests by code, the most frequent first."""
    retried_by: str | None
    """Extends OpenAI's API: the id of the batch that retries this one, whose metadata has this id as `retry_of`."""
    progress: Progress | None
    """Extends OpenAI's API: the progress of a running batch."""


class BatchList(ListPage[Batch]):
    pass


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorDetail


def error_responses(*statuses: int | str, model: type[BaseModel] = Error) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route for the OpenAPI document.

    They refer to the schema instead of the model: FastAPI would build a validator for each mention of the model, which
    took most of the time of creating an application.
    """
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {status: {"content": content} for status in statuses}


def request_body(media_type: str, required: Sequence[str], properties: dict[str, Any]) -> dict[str, Any]:
    """Return the documentation of a body that FastAPI cannot document, because the route reads it as it arrives."""
    schema = {"type": "object", "required": list(required), "properties": properties}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def file_object(record: FileRecord) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_ms // 1000,
        expires_at=record.expires_at,
        filename=record.filename,
        purpose=record.purpose,
    )


def upload_object(upload: UploadState) -> Upload:
    record = upload.record
    return Upload(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_at,
        filename=record.filename,
        purpose=record.purpose,
        status=upload.status,
        expires_at=record.expires_at,
        file=file_object(upload.file) if upload.file else None,
    )


def batch_list(
    views: Sequence[BatchView], retried_by: Sequence[str | None], *, has_more: bool, partial: bool = False
) -> BatchList:
    data = [batch_object(view, retry, partial=partial) for view, retry in zip(views, retried_by, strict=True)]
    return BatchList.of(data, has_more=has_more)


def batch_object(
    view: BatchView,
    retried_by: str | None = None,
    *,
    partial: bool = False,
    messages: Mapping[str, str] | None = None,
) -> Batch:
    """Return the batch object of a view.

    Args: ``partial`` shows the ids of result files as soon as they have a line; ``messages`` are by error code.
    """
    spec, status = view.record.spec, view.record.status
    output_file_id, error_file_id = status.output_file_id, status.error_file_id
    if partial and not status.phase.is_terminal:
        output_file_id = result_file_id(spec.batch_id, "output") if status.counts.completed else None
        error_file_id = result_file_id(spec.batch_id, "error") if status.counts.failed else None
    return Batch(
        id=spec.batch_id,
        endpoint=spec.endpoint,
        model=status.model,
        errors=_errors(status),
        input_file_id=spec.input_file_id,
        completion_window=spec.completion_window,
        status=_phase(status).value,
        output_file_id=output_file_id,
        error_file_id=error_file_id,
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
        error_summary=[
            ErrorSummaryItem(
                code=one.code,
                count=one.count,
                first_lines=one.first_lines,
                message=(messages or {}).get(one.code) or None,
            )
            for one in status.error_summary
        ]
        or None,
        retried_by=retried_by,
        progress=view.progress,
    )


def _phase(status: BatchStatus) -> BatchPhase:
    """Return the status to show. A batch that was asked to stop is ``cancelling``, whatever it still does."""
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
