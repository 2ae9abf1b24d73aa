"""What a program is told when a batch has no results to give, or the server is none of batches."""

from __future__ import annotations

from typing import TypeVar

from openai import APIStatusError, OpenAIError
from openai.types import Batch, FileObject

Answer = TypeVar("Answer", Batch, FileObject)


class BatchFailed(Exception):
    """A batch ended as ``failed``: it has no results. The message says why, and so does ``batch.errors``."""

    def __init__(self, batch: Batch) -> None:
        said = problems(batch)
        more = f"; and {len(said) - 5} more" if len(said) > 5 else ""
        super().__init__(f"{batch.id} failed: {'; '.join(said[:5]) or 'the server does not say why'}{more}")
        self.batch = batch


class BatchNotEnded(Exception):
    """A batch has no results yet."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(f"{batch.id} is {batch.status}: no results yet")
        self.batch = batch


class NotABatchServer(OpenAIError):
    """What answers is not OpenAI's Batch API. Most likely the base URL is wrong."""

    def __init__(self) -> None:
        super().__init__("what answers there is not OpenAI's Batch API; is the base URL right? Mostly it ends in /v1")


def problems(batch: Batch) -> list[str]:
    """What is wrong with a failed batch, each a line of text."""
    found = (batch.errors and batch.errors.data) or []
    return [
        (f"line {problem.line}: " if problem.line else "") + f"{problem.message} ({problem.code})" for problem in found
    ]


def message_of(error: APIStatusError) -> str:
    """What the server says is wrong, without what the SDK puts around it."""
    match error.body:
        case {"message": str(message)}:
            return message
        case _:
            return error.response.reason_phrase or error.message


def having_id(answer: Answer) -> Answer:
    """The answer, which may be anything where the address is another server's: the SDK checks no shapes.

    Raises:
        NotABatchServer: it is no object of the API.
    """
    if not isinstance(getattr(answer, "id", None), str):
        raise NotABatchServer
    return answer
