"""The asynchronous client, for programs that run in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from openai import APIError, AsyncOpenAI

from .batches import Batches
from .calls import AwaitedCalls
from .options import MAX_POLL_SECONDS, PATIENCE_SECONDS


class AsyncBatchClient(Batches):
    """The asynchronous version of :class:`BatchClient`, with the same methods, parameters and errors.

    Waits and network transfers do not block the event loop. Reading and writing local files does.
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
        super().__init__(AwaitedCalls(openai, sleep), patience, max_poll, on_retry)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
