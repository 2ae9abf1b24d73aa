"""Writes a request's body to the store as it arrives."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

from activities.store.object_store import ObjectStore, ObjectWriter, StoreError
from api.http.bodies import Body
from api.http.errors import ApiError

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a function like ``asyncio.to_thread``, but wait for the thread when cancelled.

    The next step closes the writer, which must not happen while a thread is still writing to it or opening it.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


class StoreSink:
    """The writer of one object, which the first write opens. All methods block."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._context: AbstractContextManager[ObjectWriter] | None = None
        self._writer: ObjectWriter | None = None
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        if self._writer is None:
            self._context = self._store.writer(self._key)
            self._writer = self._context.__enter__()
        self._writer.write(data)
        self._hash.update(data)

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def commit(self) -> None:
        assert self._writer, "an upload is committed inside its block"
        self._writer.commit()

    def close(self) -> None:
        context, self._context, self._writer = self._context, None, None
        if context:
            context.__exit__(None, None, None)


@asynccontextmanager
async def sink_of(body: Body, store: ObjectStore, key: str) -> AsyncGenerator[StoreSink]:
    """Yield the sink for a body. A block that ends without a commit leaves nothing behind.

    If the block raises ``ApiError`` or ``StoreError``, the rest of the body is read within bounds, so that the client
    receives the response.
    """
    sink = StoreSink(store, key)
    try:
        yield sink
    except (ApiError, StoreError):
        await in_thread(sink.close)  # its space may be needed while the rest is read
        await body.drain()
        raise
    finally:
        await in_thread(sink.close)
