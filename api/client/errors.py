"""Errors of the client library, and what servers say of failures."""

from __future__ import annotations

from typing import Any, TypeVar

from openai import APIStatusError, OpenAIError
from openai.types import Batch, FileObject

Answer = TypeVar("Answer", Batch, FileObject)


class BatchFailedError(Exception):
    """A batch ended as ``failed``: it has no results. The message gives the reasons, and so does ``batch.errors``."""

    def __init__(self, batch: Batch) -> None:
        said = problems(batch)
        more = f"; and {len(said) - 5} more" if len(said) > 5 else ""
        super().__init__(f"{batch.id} failed: {'; '.join(said[:5]) or 'the server gives no reason'}{more}")
        self.batch = batch


class BatchNotEndedError(Exception):
    """A batch has no results yet."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(f"{batch.id} is {batch.status}: it has no results yet")
        self.batch = batch


class NotABatchServerError(OpenAIError):
    """The server that answers does not have OpenAI's Batch API. Most likely the base URL is wrong."""

    def __init__(self) -> None:
        super().__init__(
            "the server that answers does not have OpenAI's Batch API. Check the base URL: is its port that of the "
            "API, and not that of Temporal or its UI? Base URLs usually end in /v1"
        )


def problems(batch: Batch) -> list[str]:
    """The errors of a failed batch, each as a line of text."""
    found = (batch.errors and batch.errors.data) or []
    return [
        (f"line {problem.line}: " if problem.line else "") + f"{problem.message} ({problem.code})" for problem in found
    ]


def failures(batch: Batch) -> list[str]:
    """What requests of a batch failed with, a line of text for each code."""
    found: list[dict[str, Any]] = (batch.model_extra or {}).get("error_summary") or []
    return [
        f"{one['count']} × {one['code']}"
        + (f" (first line {one['first_lines'][0]})" if one["first_lines"] else "")
        + (f": {one['message']}" if one["message"] else "")
        for one in found
    ]


def message_of(error: APIStatusError) -> str:
    """The server's own message, without what the SDK adds to it."""
    match error.body:
        case {"message": str(message)}:
            return message
        case _:
            return error.response.reason_phrase or error.message


def checked(answer: Answer) -> Answer:
    """The answer, if it is an object of the API. The SDK does not check that, whatever server has answered.

    Raises:
        NotABatchServerError: it is not.
    """
    if not isinstance(getattr(answer, "id", None), str):
        raise NotABatchServerError
    return answer
