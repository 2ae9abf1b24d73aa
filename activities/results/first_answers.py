"""Detects a batch whose first requests all receive the same 404: the address or the model is wrong."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Generator
from http import HTTPStatus
from typing import Final

from activities.records import shard_keys
from activities.results.records import RecordReader
from activities.results.shard_log import shard_heads
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from activities.upstreams.answers import Answer
from workflows.ids import BatchRef

FIRST_REQUESTS: Final = 50
"""The batch fails if this many first answers are all the same 404."""

REMEMBERED: Final = 1_000
"""Maximum number of batches whose first answers are remembered."""


class FirstAnswers:
    """The answers that this process received to the first requests of one batch."""

    def __init__(self) -> None:
        self.differ = False
        """Whether the first answers are known not to be all the same 404."""
        self._count = 0
        self._first: Answer | None = None
        self._callbacks: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def watched(self, on_failure: Callable[[], None]) -> Generator[None]:
        """Watch the answers while requests of the batch are sent in this context.

        Args: ``on_failure`` is called when the batch is to fail; nothing more may be sent after that.
        """
        self._callbacks.append(on_failure)
        try:
            if self.failure:
                on_failure()
            yield
        finally:
            self._callbacks.remove(on_failure)

    def add(self, answer: Answer) -> None:
        """Record an answer of the engine itself. Not to be called any more once :attr:`differ` is true."""
        first = self._first = self._first or answer
        self._count += 1
        self.differ = answer.status != HTTPStatus.NOT_FOUND or answer.body != first.body
        if self._count == FIRST_REQUESTS and self.failure:
            for on_failure in self._callbacks:
                on_failure()

    @property
    def failure(self) -> str:
        """The reason why the batch is to fail, or an empty string if it is not."""
        if self.differ or self._count < FIRST_REQUESTS or not self._first:
            return ""
        # Without the text of the answers, which Temporal must not store.
        return (
            f"The inference server refused each of the first {FIRST_REQUESTS} requests with the same HTTP 404; the "
            "error file has its text. Its address or the endpoint may be wrong, or it may not have the model. The "
            "other requests were not sent."
        )


class FirstAnswersOfBatches:
    def __init__(self) -> None:
        self._batches: OrderedDict[str, FirstAnswers] = OrderedDict()

    def of(self, batch_id: str) -> FirstAnswers:
        first = self._batches.setdefault(batch_id, FirstAnswers())
        self._batches.move_to_end(batch_id)
        if len(self._batches) > REMEMBERED:
            self._batches.popitem(last=False)
        return first


def has_output(store: ObjectStore, ref: BatchRef) -> bool:
    """Return whether any process has committed a successful answer to a request of the batch."""
    parts, results = shard_keys.answers_prefixes(ref)
    if any(completed for _, completed, _, _ in shard_heads(store, results)):
        return True
    for key in store.list(parts):
        with contextlib.suppress(ObjectNotFoundError):
            if any(record.kind == "output" for record in RecordReader(store.stream(key)).records()):
                return True
    return False
