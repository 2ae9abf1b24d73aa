"""The blocking client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, BinaryIO, Self, Unpack

from openai import APIError, OpenAI
from openai.types import Batch

from .batches import Batches
from .calls import BlockingCalls, complete, iterate
from .lines import Requests, Result, ResultPage
from .options import MAX_POLL_SECONDS, PATIENCE_SECONDS, SubmitOptions


class BatchClient:
    """Submits batches, waits for them, and reads their results.

    Each call is repeated while the server is unavailable (no connection, a timeout, 408, 429, 5xx), and an interrupted
    download is resumed.

    Args:
        openai: the SDK's client, which holds the base URL and the API key. This client closes it.
        patience: the number of seconds that the server may be unavailable before a call fails.
        max_poll: the longest interval between two polls of a batch, in seconds. The first intervals are shorter.
        on_retry: called with each error after which the client waits and tries again.
        sleep: function that waits for the given number of seconds.

    Raises:
        openai.OpenAIError: from every method, if the server refuses the call, or is unavailable for longer than
            ``patience``.
    """

    def __init__(
        self,
        openai: OpenAI,
        *,
        patience: float = PATIENCE_SECONDS,
        max_poll: float = MAX_POLL_SECONDS,
        on_retry: Callable[[APIError], object] = lambda _: None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._batches = Batches(BlockingCalls(openai, sleep), patience, max_poll, on_retry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        complete(self._batches.close())

    def run(
        self,
        requests: Requests,
        endpoint: str | None = None,
        window: str = "24h",
        *,
        progress: Callable[[Batch], object] = lambda _: None,
        **options: Unpack[SubmitOptions],
    ) -> dict[str, Result]:
        """Submit requests, wait for the batch, and return each result by custom_id, in the order of the requests.

        All results are held in memory; use :meth:`results` for a large batch. A program that is killed and started
        again with the same requests and the same ``idempotency_key`` waits for the existing batch. ``progress`` is
        called with the batch each time it is polled; :meth:`submit` explains the other parameters and its errors.

        Raises:
            BatchFailedError: the server rejected the input, so the batch failed.
        """
        return complete(self._batches.run(requests, endpoint, window, progress=progress, **options))

    def submit(
        self,
        requests: Requests,
        endpoint: str | None = None,
        window: str = "24h",
        **options: Unpack[SubmitOptions],
    ) -> Batch:
        """Upload requests and create a batch of them.

        Args:
            requests: the path of an input file; or an iterable of requests, each a prompt, a ``(custom_id, body)``
                pair, or a whole line as a dict. They are read one at a time and written to a temporary file. Prompts
                get the custom_ids ``prompt-1``, ``prompt-2``, and so on.
            endpoint: for example ``/v1/embeddings``. Default: the url of the first request, or chat completions if it
                names none.
            window: the completion window.
            **options: see :class:`SubmitOptions`.

        Raises:
            ValueError: the requests do not form an input file. The message says what is wrong and what is expected.
            OSError: the input file cannot be read, or a temporary file cannot be written.
        """
        return complete(self._batches.submit(requests, endpoint, window, **options))

    def retrieve(self, batch_id: str) -> Batch:
        """Return the batch in its current state."""
        return complete(self._batches.retrieve(batch_id))

    def follow(self, batch_id: str) -> Generator[Batch]:
        """Poll a batch and yield it each time, for the last time when it has ended."""
        return iterate(self._batches.follow(batch_id))

    def wait(
        self, batch_id: str, progress: Callable[[Batch], object] = lambda _: None, timeout: float | None = None
    ) -> Batch:
        """Wait until a batch has ended, with whatever ``status``, and return it.

        Args:
            batch_id: the batch.
            progress: called with the batch each time it is polled.
            timeout: the longest time to wait, in seconds; ``None`` waits without a limit.

        Raises:
            TimeoutError: the batch has not ended in time. It continues to run.
        """
        return complete(self._batches.wait(batch_id, progress, timeout))

    def events(self, batch_id: str) -> list[dict[str, Any]]:
        """Return the events and waits of a batch on Everbatch, as ``docs/api.md`` describes them."""
        return complete(self._batches.events(batch_id))

    def set_paused(self, batch_id: str, paused: bool) -> Batch:
        """Pause or resume a batch on Everbatch. Its completion window keeps running."""
        return complete(self._batches.set_paused(batch_id, paused))

    def cancel(self, batch_id: str) -> Batch:
        """Request that a batch stops. The batch ends some time later; use :meth:`wait` to wait for that.

        Raises:
            openai.ConflictError: the batch has already ended with a status other than ``cancelled``.
        """
        return complete(self._batches.cancel(batch_id))

    def retry(self, batch_id: str, codes: Iterable[str] | None = None, idempotency_key: str | None = None) -> Batch:
        """Create a new batch on Everbatch that sends the failed requests of a batch that has ended again.

        The result files of the new batch cover all requests of the first one: existing answers are copied, and their
        requests are not sent again.

        Args:
            batch_id: the batch that has ended. Repeating the call returns the same new batch.
            codes: the error codes to retry; ``None`` retries every failed request.
            idempotency_key: see :meth:`submit`.

        Raises:
            openai.ConflictError: the batch has not ended, has no failed requests, or was retried for other codes; or
                its files no longer exist.
            openai.BadRequestError: no failed request has one of the codes.
        """
        return complete(self._batches.retry(batch_id, codes, idempotency_key))

    def batches(self, page_size: int = 100) -> Generator[Batch]:
        """Yield all batches, the newest first, reading them page by page."""
        return iterate(self._batches.batches(page_size))

    def results(self, batch_id: str, custom_ids: Iterable[str] | None = None) -> Generator[Result]:
        """Yield the results of a batch that has ended, each once: in the order of the files, then the missing ones.

        An expired or cancelled batch has results too: the answers that arrived in time, and an error for each other
        request.

        Args:
            batch_id: the batch.
            custom_ids: the custom_ids of all requests, to find missing results. If it is ``None``, the input file is
                downloaded when the batch's counts show that results are missing.

        Raises (when the results are read):
            BatchNotEndedError: the batch has no results yet.
            BatchFailedError: the batch failed and has no results.
            ValueError: a line is not a result.
            LookupError: results are missing and the input file no longer exists.
            OSError: a temporary file cannot be written.
        """
        return iterate(self._batches.results(batch_id, custom_ids))

    def result_pages(self, batch_id: str, after: str = "0") -> Generator[ResultPage]:
        """Yield the results of a batch on Everbatch as they are committed, each once, and wait until the batch ends.

        Args:
            batch_id: the batch.
            after: the ``cursor`` of the last page that was read, to resume after it.

        Raises:
            openai.NotFoundError: the server has no such batch, or is not Everbatch.
            openai.BadRequestError: ``after`` is not a cursor of this batch.
        """
        return iterate(self._batches.result_pages(batch_id, after))

    def open(self, file_id: str) -> BinaryIO:
        """Download a file from the server into a temporary file, which is deleted when it is closed, and return that.

        Raises:
            OSError: the temporary file cannot be written.
        """
        return complete(self._batches.open(file_id))

    def download(self, file_id: str | None, path: str | os.PathLike[str]) -> None:
        """Download a file to ``path``, completely or not at all. If ``file_id`` is ``None``, write an empty file.

        Raises:
            OSError: the file cannot be written.
        """
        complete(self._batches.download(file_id, path))
