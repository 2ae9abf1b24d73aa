"""The asynchronous client, for programs that run in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from openai import APIError, AsyncOpenAI
from openai.types import Batch

from .batches import Batches
from .calls import AwaitedCalls
from .lines import Requests, Result, ResultPage
from .options import MAX_POLL_SECONDS, PATIENCE_SECONDS


class AsyncBatchClient:
    """The asynchronous version of :class:`BatchClient`, with the same methods, parameters and errors.

    Waits and network transfers do not block the event loop. Reading and writing local files does.

    Args:
        openai: the SDK's client, which holds the base URL and the API key. This client closes it.
        patience: see :class:`BatchClient`.
        max_poll: see :class:`BatchClient`.
        on_retry: see :class:`BatchClient`.
        sleep: coroutine function that waits for the given number of seconds.
    """

    def __init__(
        self,
        openai: AsyncOpenAI,
        *,
        patience: float = PATIENCE_SECONDS,
        max_poll: float = MAX_POLL_SECONDS,
        on_retry: Callable[[APIError], object] = lambda _: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._batches = Batches(AwaitedCalls(openai, sleep), patience, max_poll, on_retry)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._batches.close()

    async def run(
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
        return await self._batches.run(
            requests,
            endpoint,
            window,
            model=model,
            metadata=metadata,
            idempotency_key=idempotency_key,
            progress=progress,
        )

    async def submit(
        self,
        requests: Requests,
        endpoint: str | None = None,
        window: str = "24h",
        *,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        return (await self._batches.submit(requests, endpoint, window, model, metadata, idempotency_key))[0]

    async def retrieve(self, batch_id: str) -> Batch:
        return await self._batches.retrieve(batch_id)

    def follow(self, batch_id: str) -> AsyncGenerator[Batch, None]:
        return self._batches.follow(batch_id)

    async def wait(
        self, batch_id: str, progress: Callable[[Batch], object] = lambda _: None, timeout: float | None = None
    ) -> Batch:
        return await self._batches.wait(batch_id, progress, timeout)

    async def events(self, batch_id: str) -> list[dict[str, Any]]:
        return await self._batches.events(batch_id)

    async def set_paused(self, batch_id: str, paused: bool) -> Batch:
        return await self._batches.set_paused(batch_id, paused)

    async def cancel(self, batch_id: str) -> Batch:
        return await self._batches.cancel(batch_id)

    async def retry(
        self, batch_id: str, codes: Iterable[str] | None = None, idempotency_key: str | None = None
    ) -> Batch:
        return await self._batches.retry(batch_id, codes, idempotency_key)

    def batches(self, page_size: int = 100) -> AsyncGenerator[Batch, None]:
        return self._batches.batches(page_size)

    async def results(self, batch_id: str, custom_ids: Iterable[str] | None = None) -> AsyncGenerator[Result, None]:
        found = self._batches.results(await self._batches.ended(batch_id), custom_ids)
        async with contextlib.aclosing(found):
            async for result in found:
                yield result

    def result_pages(self, batch_id: str, after: str = "0") -> AsyncGenerator[ResultPage, None]:
        return self._batches.result_pages(batch_id, after)

    async def open(self, file_id: str) -> BinaryIO:
        return await self._batches.open(file_id)

    async def download(self, file_id: str | None, path: str | os.PathLike[str]) -> None:
        await self._batches.download(file_id, Path(path))
