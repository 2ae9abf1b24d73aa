"""The errors of the client library, and the texts in which servers describe failures."""

from __future__ import annotations

from typing import Any, TypeVar

from openai import APIStatusError, OpenAIError
from openai.types import Batch, FileObject

Answer = TypeVar("Answer", Batch, FileObject)


class BatchFailedError(Exception):
    """A batch ended as ``failed``, so it has no results. The message and ``batch.errors`` give the reasons."""

    def __init__(self, batch: Batch) -> None:
        said = problems(batch)
        more = f"; and {len(said) - 5} more" if len(said) > 5 else ""
        super().__init__(f"{batch.id} failed: {'; '.join(said[:5]) or 'the server gives no reason'}{more}")
        self.batch = batch


class BatchNotEndedError(Exception):
    """A batch has not ended, so it has no results yet."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(f"{batch.id} is {batch.status}: it has no results yet")
        self.batch = batch


class NotABatchServerError(OpenAIError):
    """The server that responded does not have OpenAI's Batch API. Most likely the base URL is wrong."""

    def __init__(self) -> None:
        super().__init__(
            "the server that answers does not have OpenAI's Batch API. Check the base URL: is its port that of the "
            "API, and not that of Temporal or its UI? Base URLs usually end in /v1"
        )


def problems(batch: Batch) -> list[str]:
    """Return the errors of a failed batch, one line of text each."""
    found = (batch.errors and batch.errors.data) or []
    return [
        (f"line {problem.line}: " if problem.line else "") + f"{problem.message} ({problem.code})" for problem in found
    ]


def failures(batch: Batch) -> list[str]:
    """Return a line of text for each error code with which requests of a batch failed."""
    found: list[dict[str, Any]] = (batch.model_extra or {}).get("error_summary") or []
    return [
        f"{one['count']} × {one['code']}"
        + (f" (first line {one['first_lines'][0]})" if one["first_lines"] else "")
        + (f": {one['message']}" if one["message"] else "")
        for one in found
    ]


def message_of(error: APIStatusError) -> str:
    """Return the server's own error message, without the text that the SDK adds to it."""
    match error.body:
        case {"message": str(message)}:
            return message
        case _:
            return error.response.reason_phrase or error.message


def checked(answer: Answer) -> Answer:
    """Return ``answer`` if it is an object of the API. The SDK does not check this, whatever the server sends.

    Raises:
        NotABatchServerError: ``answer`` is not an object of the API.
    """
    if not isinstance(getattr(answer, "id", None), str):
        raise NotABatchServerError
    return answer
