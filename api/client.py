"""Batches from a program's side, on the stock ``openai`` SDK: from requests to results by custom_id.

A list of prompts becomes a dict of answers in three lines::

    with BatchClient(OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")) as client:
        results = client.run((f"q-{n}", {"model": "m", "messages": chat(text)}) for n, text in prompts)
    answers = {custom_id: result.text for custom_id, result in results.items() if result.ok}

It needs nothing of a server but OpenAI's Files and Batches API, so hosted OpenAI is used alike. It is synchronous: a
job that waits for a batch has nothing else to do; one that has takes a thread, or the SDK's ``AsyncOpenAI`` itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Self, cast

import httpx2
from openai import APIConnectionError, APIError, NotFoundError, OpenAI, omit
from openai.pagination import SyncCursorPage
from openai.types import Batch

from api.client_errors import BatchFailed, BatchNotEnded, NotABatchServer, having_id
from api.client_lines import Request, Result, custom_id_of, endpoint_of, missing, read_result, write_requests
from api.client_retry import Patience

TERMINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
PATIENCE_SECONDS: Final = 600.0
FIRST_POLL_SECONDS: Final = 0.2
MAX_POLL_SECONDS: Final = 15.0
ANSWER_SECONDS: Final = 60.0
"""For a call that moves no file. The SDK's own limit would let a dead connection hang for ten minutes."""

__all__ = ["TERMINAL", "BatchClient", "BatchFailed", "BatchNotEnded", "NotABatchServer", "Request", "Result"]


class BatchClient:
    """Submits batches, waits for them, and reads their results.

    A server that is away (no connection, a timeout, 408, 429, 5xx, a download that is cut) is waited for in each call.

    Args:
        openai: knows the server and the key. It is closed with this client.
        patience: seconds that a server may be away before a call gives up.
        max_poll: the longest wait in seconds between two looks at a batch. The first are shorter.
        away: told of each failure that is waited for.
        sleep: waits, in seconds.

    Raises:
        openai.OpenAIError: from every method, when the server refuses, or is away for longer than ``patience``.
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
        self._openai = openai.with_options(max_retries=0)
        self._patience = Patience(patience, away, sleep)
        self._max_poll = max_poll
        self._sleep = sleep
        self._ended: dict[str, Batch] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._openai.close()

    def run(
        self,
        requests: Path | Iterable[Request],
        endpoint: str | None = None,
        window: str = "24h",
        *,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        progress: Callable[[Batch], object] = lambda _: None,
    ) -> dict[str, Result]:
        """Submit, wait, and give the result of each request by its custom_id, in the order of the requests.

        All results are in memory at once; for those of a large batch see :meth:`results`. A job that is killed and
        begun again with the same requests and the same ``idempotency_key`` waits for the batch that is there.

        Args:
            requests: see :meth:`submit`, as for all that is not named here.
            endpoint: see there.
            window: see there.
            metadata: see there.
            idempotency_key: see there.
            progress: told of the batch at each look at it.

        Raises:
            BatchFailed: the input was refused.
        """
        batch, custom_ids = self._submit(requests, endpoint, window, metadata, idempotency_key)
        batch = self.wait(batch.id, progress)
        results = {result.custom_id: result for result in self.results(batch.id, custom_ids)}
        order = [custom_id for custom_id in custom_ids or () if custom_id in results]
        return {custom_id: results[custom_id] for custom_id in order} | results

    def submit(
        self,
        requests: Path | Iterable[Request],
        endpoint: str | None = None,
        window: str = "24h",
        *,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Upload requests and create their batch.

        Args:
            requests: the path of an input file; or any iterable of requests, each ``(custom_id, body)`` or a whole line
                as a dict. They are taken one at a time and put into a temporary file, never all into memory.
            endpoint: for example ``/v1/embeddings``. Default: the url of the first request, or chat completions where
                it names none.
            window: the completion window.
            metadata: up to 16 short texts that the batch carries.
            idempotency_key: with Everbatch, the same key and requests make one batch, however often they are submitted.

        Raises:
            ValueError: the requests make no input file: none, a custom_id that comes twice, a body that is not JSON.
            OSError: the file cannot be read, or a temporary one not be written.
        """
        return self._submit(requests, endpoint, window, metadata, idempotency_key)[0]

    def _submit(
        self,
        requests: Path | Iterable[Request],
        endpoint: str | None,
        window: str,
        metadata: Mapping[str, str] | None,
        key: str | None,
    ) -> tuple[Batch, list[str] | None]:
        # Without a key of the caller's, one of our own still keeps repeated calls from making two of anything.
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        if isinstance(requests, Path):
            endpoint = endpoint or endpoint_of(requests)
            if not endpoint:
                raise ValueError(f"{requests}: the first line names no url, so the endpoint must be given")
            with requests.open("rb") as file:
                file_id = self._upload(requests.name, file, headers)
            return self._create(file_id, endpoint, window, metadata, headers), None
        with tempfile.TemporaryFile() as file:
            endpoint, custom_ids = write_requests(requests, endpoint, file)
            file_id = self._upload("requests.jsonl", file, headers)
        return self._create(file_id, endpoint, window, metadata, headers), custom_ids

    def _upload(self, name: str, file: BinaryIO, headers: dict[str, str]) -> str:
        def upload() -> str:
            file.seek(0)
            uploaded = self._openai.files.create(file=(name, file), purpose="batch", extra_headers=headers)
            return having_id(uploaded).id

        return self._patience.call(upload)

    def _create(
        self, file_id: str, endpoint: str, window: str, metadata: Mapping[str, str] | None, headers: dict[str, str]
    ) -> Batch:
        tries = 0

        def create() -> Batch:
            nonlocal tries
            tries += 1
            if tries > 1 and (made := self._batch_of(file_id, endpoint)):
                return made
            return having_id(
                self._openai.batches.create(
                    input_file_id=file_id,
                    endpoint=endpoint,  # pyright: ignore[reportArgumentType] - the server says which there are
                    completion_window=window,  # pyright: ignore[reportArgumentType]
                    metadata=dict(metadata) if metadata is not None else omit,
                    extra_headers=headers,
                    timeout=ANSWER_SECONDS,
                )
            )

        return self._patience.call(create)

    def _batch_of(self, file_id: str, endpoint: str) -> Batch | None:
        """The batch that a create has made whose answer was lost. Not every server knows idempotency keys."""
        same = (batch for batch in self._page().data if (batch.input_file_id, batch.endpoint) == (file_id, endpoint))
        return next(same, None)

    def _page(self, limit: int = 100, after: str | None = None) -> SyncCursorPage[Batch]:
        """The newest batches, or the next older ones. The SDK's own paging could not be waited for in between."""
        try:
            page = self._openai.batches.list(limit=limit, after=after or omit, timeout=ANSWER_SECONDS)
        except AttributeError:  # the SDK's way to take an answer that is no JSON
            raise NotABatchServer from None
        if not isinstance(getattr(page, "data", None), list):
            raise NotABatchServer
        return page

    def retrieve(self, batch_id: str) -> Batch:
        """The batch as it is now. Once seen at its end it stays there: a later answer that says otherwise is stale."""
        batch = self._patience.call(lambda: self._openai.batches.retrieve(batch_id, timeout=ANSWER_SECONDS))
        return self._remembered(batch)

    def _remembered(self, batch: Batch) -> Batch:
        batch = self._latest(batch)
        if batch.status in TERMINAL:
            self._ended[batch.id] = batch
        return batch

    def _latest(self, batch: Batch) -> Batch:
        ended = self._ended.get(having_id(batch).id)
        return ended if ended and batch.status != ended.status else batch

    def follow(self, batch_id: str) -> Generator[Batch]:
        """The batch at each look at it, the last time at its end."""
        started = time.monotonic()
        while True:
            batch = self.retrieve(batch_id)
            yield batch
            if batch.status in TERMINAL:
                return
            # Small batches are done in an instant, large ones are not looked at a thousand times.
            waited = time.monotonic() - started
            self._sleep(min(max(waited / 20, FIRST_POLL_SECONDS), self._max_poll))

    def wait(
        self, batch_id: str, progress: Callable[[Batch], object] = lambda _: None, timeout: float | None = None
    ) -> Batch:
        """Wait for the end of a batch, whichever it is: its ``status`` tells.

        Args:
            batch_id: which.
            progress: told of the batch at each look at it.
            timeout: in seconds; ``None`` waits as long as it takes.

        Raises:
            TimeoutError: the batch has not ended in time. It goes on.
        """
        started = time.monotonic()
        for batch in self.follow(batch_id):
            progress(batch)
            if batch.status in TERMINAL:
                return batch
            if timeout is not None and time.monotonic() - started >= timeout:
                break
        raise TimeoutError(f"{batch_id} has not ended after {timeout} s")

    def cancel(self, batch_id: str) -> Batch:
        """Ask a batch to stop. It has ended only later: see :meth:`wait`.

        Raises:
            openai.ConflictError: it has ended already, and otherwise than cancelled.
        """
        batch = self._patience.call(lambda: self._openai.batches.cancel(batch_id, timeout=ANSWER_SECONDS))
        return self._remembered(batch)

    def batches(self, page_size: int = 100) -> Generator[Batch]:
        """All batches, the newest first, asked for by pages."""
        after, has_more = None, True
        while has_more:
            page = self._patience.call(partial(self._page, page_size, after))
            yield from map(self._latest, page.data)
            has_more = bool(page.data) and page.has_more is not False
            after = page.data[-1].id if page.data else None

    def results(self, batch_id: str, custom_ids: Iterable[str] | None = None) -> Generator[Result]:
        """The results of a batch that has ended, one at a time and each once: as the files have them, then the missing.

        An expired or a cancelled batch has results too: those in time, and what became of the others.

        Args:
            batch_id: which.
            custom_ids: those asked for, so that missing ones are found. Without them the input file is read back where
                the batch's counts say that some are missing.

        Raises:
            BatchNotEnded: it has no results yet.
            BatchFailed: it has none at all.
            ValueError: while reading, a line that is no result.
            LookupError: while reading, requests are missing and the input file that would name them is gone.
            OSError: a temporary file cannot be written.
        """
        batch = self.retrieve(batch_id)
        if batch.status == "failed":
            raise BatchFailed(batch)
        if batch.status not in TERMINAL:
            raise BatchNotEnded(batch)
        return self._results(batch, custom_ids)

    def _results(self, batch: Batch, custom_ids: Iterable[str] | None) -> Generator[Result]:
        seen: set[str] = set()
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            for number, line in self._lines(file_id):
                try:
                    result = read_result(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{file_id}, line {number}: {error}") from error
                if result.custom_id not in seen:
                    seen.add(result.custom_id)
                    yield result
        total = batch.request_counts.total if batch.request_counts else None
        if custom_ids is None and not (total and total == len(seen)):
            custom_ids = self._custom_ids(batch)
        yield from (missing(custom_id) for custom_id in custom_ids or () if custom_id not in seen)

    def _custom_ids(self, batch: Batch) -> Generator[str]:
        try:
            yield from filter(None, (custom_id_of(line) for _, line in self._lines(batch.input_file_id)))
        except NotFoundError:
            raise LookupError(
                f"{batch.id}: its results do not make up its requests, and the input file that would name the missing "
                "ones is gone; give the custom_ids"
            ) from None

    def _lines(self, file_id: str) -> Generator[tuple[int, bytes]]:
        """The lines of a file that are not blank, with their numbers."""
        with self.open(file_id) as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())

    def open(self, file_id: str) -> BinaryIO:
        """A whole file of the server, as a temporary one that is gone when it is closed.

        Raises:
            OSError: it cannot be written.
        """
        with contextlib.ExitStack() as on_error:
            file = on_error.enter_context(tempfile.TemporaryFile())
            self._fetch(file_id, file)
            file.seek(0)
            on_error.pop_all()
            return cast("BinaryIO", file)

    def download(self, file_id: str | None, path: Path) -> None:
        """Write a result file to ``path``, whole or not at all; an empty one where there is no such file.

        Raises:
            OSError: the file cannot be written.
        """
        path = path.resolve()
        if path.exists() and not path.is_file():  # a device or a pipe is written into, never replaced
            with path.open("wb") as target, self.open(file_id) if file_id else contextlib.nullcontext() as file:
                if file:
                    shutil.copyfileobj(file, target)
            return
        partial = path.with_name(path.name + ".part")
        try:
            with partial.open("wb") as target:
                if file_id:
                    self._fetch(file_id, target)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _fetch(self, file_id: str, target: BinaryIO) -> None:
        """A file from the server, begun anew where it is cut off."""

        def fetch() -> None:
            target.seek(0)
            target.truncate()
            with self._openai.files.with_streaming_response.content(file_id) as response:
                try:
                    for chunk in response.iter_bytes(1 << 20):
                        target.write(chunk)
                except httpx2.HTTPError as error:  # while a body is streamed the SDK lets these through
                    raise APIConnectionError(request=error.request) from error

        self._patience.call(fetch)
