"""The client that blocks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from openai import APIError, OpenAI
from openai.types import Batch

from .batches import Batches
from .calls import BlockingCalls, complete, iterate
from .lines import Requests, Result, ResultPage
from .options import MAX_POLL_SECONDS, PATIENCE_SECONDS


class BatchClient:
    """Submits batches, waits for them, and reads their results.

    Each call waits for a server that is unavailable (no connection, a timeout, 408, 429, 5xx), and resumes a download
    that is cut off.

    Args:
        openai: knows the server and the key. It is closed with this client.
        patience: seconds that a server may be unavailable before a call gives up.
        max_poll: the longest wait in seconds between two looks at a batch. The first waits are shorter.
        away: called with each failure that is waited for.
        sleep: waits, in seconds.

    Raises:
        openai.OpenAIError: from every method, when the server refuses, or is unavailable for longer than ``patience``.
    """

    def __init__(
        self,
        openai: OpenAI,
        *,
        patience: float = PATIENCE_SECONDS,
        max_poll: float = MAX_POLL_SECONDS,
        away: Callable[[APIError], object] = lambda _: None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._batches = Batches(BlockingCalls(openai, sleep), patience, max_poll, away)

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
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        progress: Callable[[Batch], object] = lambda _: None,
    ) -> dict[str, Result]:
        """Submit, wait, and return the result of each request by its custom_id, in the order of the requests.

        All results are in memory at once; for those of a large batch see :meth:`results`. A job that is killed and
        started again with the same requests and the same ``idempotency_key`` waits for the batch that exists.

        Args:
            requests: see :meth:`submit`, as for all that is not named here.
            endpoint: see there.
            window: see there.
            model: see there.
            metadata: see there.
            idempotency_key: see there.
            progress: called with the batch at each look at it.

        Raises:
            ValueError: see :meth:`submit`.
            BatchFailedError: the input was refused.
        """
        return complete(
            self._batches.run(
                requests,
                endpoint,
                window,
                model=model,
                metadata=metadata,
                idempotency_key=idempotency_key,
                progress=progress,
            )
        )

    def submit(
        self,
        requests: Requests,
        endpoint: str | None = None,
        window: str = "24h",
        *,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Upload requests and create their batch.

        Args:
            requests: the path of an input file; or an iterable of requests, each a prompt, a ``(custom_id, body)``
                pair, or a whole line as a dict. They are taken one at a time and written to a temporary file. Prompts
                get the custom_ids ``prompt-1``, ``prompt-2``, and so on.
            endpoint: for example ``/v1/embeddings``. Default: the url of the first request, or chat completions where
                it names none.
            window: the completion window.
            model: the model for prompts, and for bodies that name none.
            metadata: up to 16 short texts that the batch carries.
            idempotency_key: with Everbatch, the same key and requests make one batch, however often they are submitted.

        Raises:
            ValueError: the requests do not make an input file. The message says what is wrong and what is wanted.
            OSError: the file cannot be read, or a temporary one cannot be written.
        """
        return complete(self._batches.submit(requests, endpoint, window, model, metadata, idempotency_key))[0]

    def retrieve(self, batch_id: str) -> Batch:
        """The batch as it is now."""
        return complete(self._batches.retrieve(batch_id))

    def follow(self, batch_id: str) -> Generator[Batch]:
        """The batch at each look at it, for the last time at its end."""
        return iterate(self._batches.follow(batch_id))

    def wait(
        self, batch_id: str, progress: Callable[[Batch], object] = lambda _: None, timeout: float | None = None
    ) -> Batch:
        """Wait for the end of a batch, whichever it is: see its ``status``.

        Args:
            batch_id: which.
            progress: called with the batch at each look at it.
            timeout: in seconds; ``None`` waits as long as it takes.

        Raises:
            TimeoutError: the batch has not ended in time. It continues to run.
        """
        return complete(self._batches.wait(batch_id, progress, timeout))

    def events(self, batch_id: str) -> list[dict[str, Any]]:
        """What has happened to a batch, and what it has waited for: see ``docs/api.md``."""
        return complete(self._batches.events(batch_id))

    def set_paused(self, batch_id: str, paused: bool) -> Batch:
        """Pause or resume a batch. Its completion window keeps running."""
        return complete(self._batches.set_paused(batch_id, paused))

    def cancel(self, batch_id: str) -> Batch:
        """Ask a batch to stop. It ends only later: see :meth:`wait`.

        Raises:
            openai.ConflictError: it has ended already, and not as cancelled.
        """
        return complete(self._batches.cancel(batch_id))

    def retry(self, batch_id: str, codes: Iterable[str] | None = None, idempotency_key: str | None = None) -> Batch:
        """Have Everbatch send the failed requests of a batch that has ended again, as a new batch.

        The new batch's result files have all requests of the first one: its answers are taken over, never sent again.

        Args:
            batch_id: the batch that has ended. Repeating the call returns the same new batch.
            codes: of the errors whose requests are retried; ``None`` retries all that failed.
            idempotency_key: see :meth:`submit`.

        Raises:
            openai.ConflictError: it has not ended, has no failed requests, or was retried for other codes; or its files
                no longer exist.
            openai.BadRequestError: no failed request has one of the codes.
        """
        return complete(self._batches.retry(batch_id, codes, idempotency_key))

    def batches(self, page_size: int = 100) -> Generator[Batch]:
        """All batches, the newest first, read page by page."""
        return iterate(self._batches.batches(page_size))

    def results(self, batch_id: str, custom_ids: Iterable[str] | None = None) -> Generator[Result]:
        """The results of a batch that has ended, one at a time and each once: as the files have them, then the missing.

        An expired or a cancelled batch has results too: those in time, and what became of the others.

        Args:
            batch_id: which.
            custom_ids: those asked for, so that missing ones are found. Without them the input file is read back where
                the batch's counts say that some are missing.

        Raises:
            BatchNotEndedError: it has no results yet.
            BatchFailedError: it has none at all.
            ValueError: while reading, a line that is not a result.
            LookupError: while reading, requests are missing and the input file that would name them no longer exists.
            OSError: a temporary file cannot be written.
        """
        return iterate(self._batches.results(complete(self._batches.ended(batch_id)), custom_ids))

    def result_pages(self, batch_id: str, after: str = "0") -> Generator[ResultPage]:
        """The results of a batch of Everbatch as they are committed, each once, until its end. Waits for them.

        Args:
            batch_id: which.
            after: the ``cursor`` of the last page that was read, to resume behind it.

        Raises:
            openai.NotFoundError: the server has no such batch, or is not Everbatch.
            openai.BadRequestError: ``after`` is no cursor of this batch.
        """
        return iterate(self._batches.result_pages(batch_id, after))

    def open(self, file_id: str) -> BinaryIO:
        """A whole file of the server, as a temporary file that is deleted when it is closed.

        Raises:
            OSError: it cannot be written.
        """
        return complete(self._batches.open(file_id))

    def download(self, file_id: str | None, path: str | os.PathLike[str]) -> None:
        """Write a result file to ``path``, whole or not at all; an empty one if ``file_id`` is ``None``.

        Raises:
            OSError: the file cannot be written.
        """
        complete(self._batches.download(file_id, Path(path)))
