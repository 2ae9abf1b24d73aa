"""The differences between the SDK's two clients: one blocks, the other is awaited.

Everything else is written once, as coroutines (:mod:`.batches`). :class:`BlockingCalls` never suspends them, so
:func:`complete` can run such a coroutine to its end like a plain function.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from openai import AsyncOpenAI, OpenAI

from .options import ANSWER_SECONDS

T = TypeVar("T")


@dataclass(frozen=True)
class Content:
    """The content of a file, streamed from the server."""

    status: int
    headers: Mapping[str, str]
    request: Any
    """The HTTP library's request object, which the SDK's exceptions need."""
    chunks: AsyncIterator[bytes]
    """The bytes as they arrive. With a fixed chunk size, a broken connection would lose the incomplete chunk."""


class Calls(Protocol):
    """Makes a client's calls to the server, and waits between them."""

    async def ask(self, call: Callable[[OpenAI], T], *, transfers_file: bool = False) -> T:
        """Call the SDK. Its two clients have the same methods, so ``call`` serves for both.

        Unless the call transfers a file, it has a short time limit.
        """
        ...

    def content(self, file_id: str, headers: Mapping[str, str]) -> contextlib.AbstractAsyncContextManager[Content]: ...

    async def sleep(self, seconds: float, /) -> object: ...

    async def close(self) -> None: ...


class BlockingCalls:
    """Calls through the SDK's blocking client. The methods never suspend."""

    def __init__(self, openai: OpenAI, sleep: Callable[[float], object]) -> None:
        self._openai = openai.with_options(max_retries=0)
        self._quick = self._openai.with_options(timeout=ANSWER_SECONDS)
        self._sleep = sleep

    async def ask(self, call: Callable[[OpenAI], T], *, transfers_file: bool = False) -> T:
        return call(self._openai if transfers_file else self._quick)

    @contextlib.asynccontextmanager
    async def content(self, file_id: str, headers: Mapping[str, str]) -> AsyncGenerator[Content]:
        content = self._openai.files.with_streaming_response.content
        with content(file_id, extra_headers=headers) as response:
            chunks = _as_async(response.iter_bytes())
            yield Content(response.status_code, response.headers, response.http_request, chunks)

    async def sleep(self, seconds: float, /) -> object:
        return self._sleep(seconds) if seconds else None

    async def close(self) -> None:
        self._openai.close()


class AwaitedCalls:
    """Calls through the SDK's asynchronous client."""

    def __init__(self, openai: AsyncOpenAI, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._openai = openai.with_options(max_retries=0)
        self._quick = self._openai.with_options(timeout=ANSWER_SECONDS)
        self._sleep = sleep

    async def ask(self, call: Callable[[OpenAI], T], *, transfers_file: bool = False) -> T:
        openai = self._openai if transfers_file else self._quick
        return await cast("Awaitable[T]", call(cast("OpenAI", openai)))

    async def sleep(self, seconds: float, /) -> object:
        return await self._sleep(seconds)

    @contextlib.asynccontextmanager
    async def content(self, file_id: str, headers: Mapping[str, str]) -> AsyncGenerator[Content]:
        content = self._openai.files.with_streaming_response.content
        async with content(file_id, extra_headers=headers) as response:
            chunks = response.iter_bytes()
            yield Content(response.status_code, response.headers, response.http_request, chunks)

    async def close(self) -> None:
        await self._openai.close()


async def _as_async(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends because all its calls block.

    Raises:
        RuntimeError: the coroutine was suspended.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("a blocking call was suspended")


def iterate(items: AsyncGenerator[T, None]) -> Generator[T]:
    """Iterate over an asynchronous generator that never suspends."""
    try:
        while True:
            try:
                item = complete(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        complete(items.aclose())
