"""An event loop in a thread of its own, for work that must not wait behind that of the caller's loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SideLoop:
    """Created by :func:`side_loop`."""

    def __init__(self, name: str) -> None:
        make_loop = type(asyncio.get_running_loop())
        self._loop = make_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run_loop, name=name, daemon=True)
        self._thread.start()

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._closed())

    async def _closed(self) -> None:
        await self._closing.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Run a coroutine there, and return a future of the caller's loop. Cancelling that cancels the coroutine."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def close(self) -> None:
        """Cancel what still runs, and wait for its end."""
        self._loop.call_soon_threadsafe(self._closing.set)
        await asyncio.to_thread(self._thread.join)


@contextlib.asynccontextmanager
async def side_loop(name: str) -> AsyncGenerator[SideLoop]:
    """Run an event loop of the same kind as the caller's in a thread. Args: ``name`` is that of the thread."""
    side = SideLoop(name)
    try:
        yield side
    finally:
        await side.close()
