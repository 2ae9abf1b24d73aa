"""Notices a batch whose first requests all get the same 404: a wrong address or a model that is not there."""

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

FIRST_REQUESTS: Final = 50
"""So many answers, all the same 404, and the batch fails."""

REMEMBERED: Final = 1_000
"""Batches."""

_MAX_WORDS_LENGTH: Final = 200


class FirstAnswers:
    """What this process got for the first requests of one batch."""

    def __init__(self) -> None:
        self.differ = False
        """Whether anything but one and the same 404 has come."""
        self._count = 0
        self._first: Answer | None = None
        self._told: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def watched(self, on_failure: Callable[[], None]) -> Generator[None]:
        """Around the sending of requests of the batch: nothing more is to be sent once ``on_failure`` is called."""
        self._told.append(on_failure)
        try:
            if self.failure:
                on_failure()
            yield
        finally:
            self._told.remove(on_failure)

    def add(self, answer: Answer) -> None:
        """Take in an answer of the engine itself, while they do not differ."""
        first = self._first = self._first or answer
        self._count += 1
        self.differ = answer.status != HTTPStatus.NOT_FOUND or answer.body != first.body
        if self._count == FIRST_REQUESTS and self.failure:
            for on_failure in self._told:
                on_failure()

    @property
    def failure(self) -> str:
        """Why the batch is to fail; empty if it is not."""
        if self.differ or self._count < FIRST_REQUESTS or not self._first:
            return ""
        words = " ".join(self._first.message.split())[:_MAX_WORDS_LENGTH]
        return (
            f"The inference server refused each of the first {FIRST_REQUESTS} requests with the same HTTP 404: {words} "
            "Its address or the endpoint may be wrong, or it may not have the model. The other requests were not sent."
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


def has_output(store: ObjectStore, tenant: str, batch_id: str) -> bool:
    """Whether a request of the batch was answered with success, in whichever process."""
    parts, results = shard_keys.answers_prefixes(tenant, batch_id)
    if any(completed for _, completed, _, _ in shard_heads(store, results)):
        return True
    for key in store.list(parts):
        with contextlib.suppress(ObjectNotFoundError):
            if any(record.kind == "output" for record in RecordReader(store.stream(key)).records()):
                return True
    return False
