"""The methods of the asynchronous client. :mod:`.calls` explains how the blocking client runs the same coroutines."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Unpack, cast

from openai import APIError, NotFoundError, OpenAI, omit
from openai._legacy_response import HttpxBinaryResponseContent  # the result of `files.content`; it has no public name
from openai.pagination import SyncCursorPage
from openai.types import Batch

from .calls import Calls
from .download import Download
from .errors import BatchFailedError, BatchNotEndedError, NotABatchServerError, checked
from .files import replacing
from .lines import (
    InputWriter,
    Requests,
    Result,
    ResultPage,
    custom_id_of,
    endpoint_of,
    missing,
    path_of,
    read_result,
    rows_of,
)
from .options import FIRST_POLL_SECONDS, TERMINAL, SubmitOptions
from .retry import Patience

_REQUESTS_AT_ONCE: Final = 100
"""Number of requests that are written before other tasks of the event loop may run."""


class Batches:
    """Submits batches, waits for them, and reads their results. :class:`.client.BatchClient` documents the methods."""

    def __init__(self, calls: Calls, patience: float, max_poll: float, on_retry: Callable[[APIError], object]) -> None:
        self._calls = calls
        self._patience = Patience(patience, on_retry, calls.sleep)
        self._max_poll = max_poll
        self._ended: dict[str, Batch] = {}

    async def close(self) -> None:
        await self._calls.close()

    async def run(
        self,
        requests: Requests,
        endpoint: str | None = None,
        window: str = "24h",
        *,
        progress: Callable[[Batch], object] = lambda _: None,
        **options: Unpack[SubmitOptions],
    ) -> dict[str, Result]:
        batch, custom_ids = await self._submit(requests, endpoint, window, **options)
        batch = await self.wait(batch.id, progress)
        results = {result.custom_id: result async for result in self._results(batch, custom_ids)}
        order = [custom_id for custom_id in custom_ids or () if custom_id in results]
        return {custom_id: results[custom_id] for custom_id in order} | results

    async def submit(
        self,
        requests: Requests,
        endpoint: str | None = None,
        window: str = "24h",
        **options: Unpack[SubmitOptions],
    ) -> Batch:
        return (await self._submit(requests, endpoint, window, **options))[0]

    async def _submit(
        self,
        requests: Requests,
        endpoint: str | None,
        window: str,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[Batch, list[str] | None]:
        """Return the batch, and the custom_ids of its requests unless they come from an input file."""
        # If the caller gives no key, a random one still keeps repeated HTTP calls from creating duplicates.
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        path, custom_ids = path_of(requests), None
        if path:
            if model:
                raise ValueError(f"model= is for prompts; the requests in {path} name their own")
            endpoint = endpoint or endpoint_of(path)
            if not endpoint:
                raise ValueError(f"{path}: the first line names no url, so the endpoint must be given")
        with _opened(path) as file:
            if not path:
                endpoint, custom_ids = await self._write(rows_of(requests), endpoint, model, file)
            file_id = await self._upload(path.name if path else "requests.jsonl", file, headers)
        return await self._create(file_id, endpoint or "", window, metadata, headers), custom_ids

    async def _write(
        self, requests: Iterable[object], endpoint: str | None, model: str | None, file: BinaryIO
    ) -> tuple[str, list[str]]:
        writer = InputWriter(file, endpoint, model)
        for number, request in enumerate(requests):
            writer.add(request)
            if number % _REQUESTS_AT_ONCE == 0:
                await self._calls.sleep(0)
        return writer.end()

    async def _upload(self, name: str, file: BinaryIO, headers: dict[str, str]) -> str:
        async def upload() -> str:
            file.seek(0)
            uploaded = await self._calls.ask(
                lambda openai: openai.files.create(file=(name, file), purpose="batch", extra_headers=headers),
                transfers_file=True,
            )
            return checked(uploaded).id

        return await self._patience.call(upload)

    async def _create(
        self, file_id: str, endpoint: str, window: str, metadata: Mapping[str, str] | None, headers: dict[str, str]
    ) -> Batch:
        tries = 0

        async def create() -> Batch:
            nonlocal tries
            tries += 1
            if tries > 1 and (made := await self._batch_of(file_id, endpoint)):
                return made
            batch = await self._calls.ask(
                lambda openai: openai.batches.create(
                    input_file_id=file_id,
                    endpoint=endpoint,  # pyright: ignore[reportArgumentType] - the server checks the endpoint
                    completion_window=window,  # pyright: ignore[reportArgumentType]
                    metadata=dict(metadata) if metadata is not None else omit,
                    extra_headers=headers,
                )
            )
            return checked(batch)

        return await self._patience.call(create)

    async def _batch_of(self, file_id: str, endpoint: str) -> Batch | None:
        """Return the batch of an earlier try whose response was lost. Not every server supports idempotency keys."""
        page = await self._page()
        same = (batch for batch in page.data if (batch.input_file_id, batch.endpoint) == (file_id, endpoint))
        return next(same, None)

    async def _page(self, limit: int = 100, after: str | None = None) -> SyncCursorPage[Batch]:
        """Return a page of the newest batches, or of those older than ``after``.

        The SDK's own pagination is not used because this client could not wait for a server between its pages.
        """
        try:
            page = await self._calls.ask(lambda openai: openai.batches.list(limit=limit, after=after or omit))
        except AttributeError:  # the SDK raises this for a response that is not JSON
            raise NotABatchServerError from None
        if not isinstance(getattr(page, "data", None), list):
            raise NotABatchServerError
        return page

    async def retrieve(self, batch_id: str) -> Batch:
        return await self._look(lambda openai: openai.batches.retrieve(batch_id))

    async def cancel(self, batch_id: str) -> Batch:
        return await self._look(lambda openai: openai.batches.cancel(batch_id))

    async def set_paused(self, batch_id: str, paused: bool) -> Batch:
        path = f"/batches/{batch_id}/{'pause' if paused else 'resume'}"
        return await self._look(lambda openai: openai.post(path, cast_to=Batch))

    async def retry(
        self, batch_id: str, codes: Iterable[str] | None = None, idempotency_key: str | None = None
    ) -> Batch:
        body = {} if codes is None else {"codes": list(codes)}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        path = f"/batches/{batch_id}/retry"
        return await self._look(
            lambda openai: openai.post(path, cast_to=Batch, body=body, options={"headers": headers})
        )

    async def events(self, batch_id: str) -> list[dict[str, Any]]:
        path = f"/batches/{batch_id}/events"
        answer = await self._patience.call(lambda: self._calls.ask(lambda openai: openai.get(path, cast_to=object)))
        found = cast("dict[str, Any]", answer).get("data") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise NotABatchServerError
        return cast("list[dict[str, Any]]", found)

    async def _look(self, call: Callable[[OpenAI], Batch]) -> Batch:
        batch = self._latest(await self._patience.call(lambda: self._calls.ask(call)))
        if batch.status in TERMINAL:
            self._ended[batch.id] = batch
        return batch

    def _latest(self, batch: Batch) -> Batch:
        """Return the final batch if its end was seen before: a later response with another status is stale."""
        ended = self._ended.get(checked(batch).id)
        return ended if ended and batch.status != ended.status else batch

    async def follow(self, batch_id: str) -> AsyncGenerator[Batch, None]:
        started = time.monotonic()
        while True:
            batch = await self.retrieve(batch_id)
            yield batch
            if batch.status in TERMINAL:
                return
            # The interval grows with the time waited: small batches end within seconds, and large ones need few polls.
            waited = time.monotonic() - started
            await self._calls.sleep(min(max(waited / 20, FIRST_POLL_SECONDS), self._max_poll))

    async def wait(
        self, batch_id: str, progress: Callable[[Batch], object] = lambda _: None, timeout: float | None = None
    ) -> Batch:
        started = time.monotonic()
        async with contextlib.aclosing(self.follow(batch_id)) as looks:
            async for batch in looks:
                progress(batch)
                if batch.status in TERMINAL:
                    return batch
                if timeout is not None and time.monotonic() - started >= timeout:
                    break
        raise TimeoutError(f"{batch_id} has not ended after {timeout} s; it continues to run")

    async def batches(self, page_size: int = 100) -> AsyncGenerator[Batch, None]:
        after, has_more = None, True
        while has_more:
            page = await self._patience.call(partial(self._page, page_size, after))
            for batch in page.data:
                yield self._latest(batch)
            has_more = bool(page.data) and page.has_more is not False
            after = page.data[-1].id if page.data else None

    async def results(self, batch_id: str, custom_ids: Iterable[str] | None = None) -> AsyncGenerator[Result, None]:
        async with contextlib.aclosing(self._results(await self.retrieve(batch_id), custom_ids)) as found:
            async for result in found:
                yield result

    async def _results(self, batch: Batch, custom_ids: Iterable[str] | None) -> AsyncGenerator[Result, None]:
        if batch.status == "failed":
            raise BatchFailedError(batch)
        if batch.status not in TERMINAL:
            raise BatchNotEndedError(batch)
        seen: set[str] = set()
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            with await self.open(file_id) as file:
                for number, line in _lines(file):
                    try:
                        result = read_result(line)
                    except (ValueError, RecursionError) as error:
                        raise ValueError(f"{file_id}, line {number}: {error}") from error
                    if result.custom_id not in seen:
                        seen.add(result.custom_id)
                        yield result
        total = batch.request_counts.total if batch.request_counts else None
        if custom_ids is None and not (total and total == len(seen)):
            custom_ids = await self._custom_ids(batch)
        for custom_id in custom_ids or ():
            if custom_id not in seen:
                yield missing(custom_id)

    async def result_pages(self, batch_id: str, after: str = "0") -> AsyncGenerator[ResultPage, None]:
        pause = FIRST_POLL_SECONDS
        while True:
            page = await self._patience.call(partial(self._result_page, batch_id, after))
            after = page.cursor
            if page.content or page.is_last:
                pause = FIRST_POLL_SECONDS
                yield page
            if page.is_last:
                return
            if not page.content:
                await self._calls.sleep(pause)
                pause = min(pause * 1.5, self._max_poll)

    async def _result_page(self, batch_id: str, after: str) -> ResultPage:
        answer = await self._calls.ask(
            lambda openai: openai.get(
                f"/batches/{batch_id}/results",
                cast_to=HttpxBinaryResponseContent,
                options={"params": {"after": after}},
            )
        )
        headers = answer.response.headers
        if "everbatch-cursor" not in headers:
            raise NotABatchServerError
        return ResultPage(answer.content, headers["everbatch-cursor"], headers.get("x-incomplete") == "false")

    async def _custom_ids(self, batch: Batch) -> list[str]:
        try:
            with await self.open(batch.input_file_id) as file:
                return list(filter(None, (custom_id_of(line) for _, line in _lines(file))))
        except NotFoundError:
            raise LookupError(
                f"{batch.id}: requests are missing in its results, and the input file that would name them no longer "
                "exists; give the custom_ids"
            ) from None

    async def open(self, file_id: str) -> BinaryIO:
        with contextlib.ExitStack() as on_error:
            file = cast("BinaryIO", on_error.enter_context(tempfile.TemporaryFile()))
            await self._fetch(file_id, file)
            file.seek(0)
            on_error.pop_all()
            return file

    async def download(self, file_id: str | None, path: str | os.PathLike[str]) -> None:
        with replacing(Path(path)) as target:
            if file_id:
                await self._fetch(file_id, target)

    async def _fetch(self, file_id: str, target: BinaryIO) -> None:
        download = Download(target)
        await self._patience.call(lambda: download.attempt(self._calls, file_id), download.advanced)


def _opened(path: Path | None) -> contextlib.AbstractContextManager[BinaryIO]:
    return cast("contextlib.AbstractContextManager[BinaryIO]", path.open("rb") if path else tempfile.TemporaryFile())


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their line numbers from 1."""
    return ((number, line) for number, line in enumerate(file, 1) if line.strip())
