"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from activities.side_loop import side_loop


async def test_work_runs_in_another_thread_and_gives_its_result_or_error_to_the_caller() -> None:
    async def thread() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    async def fail() -> None:
        raise ValueError("of the work")

    async with side_loop("aside") as side:
        assert await side.run(thread()) == "aside"
        with pytest.raises(ValueError, match="of the work"):
            await side.run(fail())


async def test_work_goes_on_while_the_callers_loop_is_busy() -> None:
    done = threading.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    async with side_loop("aside") as side:
        running = side.run(work())
        assert done.wait(30)  # blocks this loop
        await running


async def test_a_cancel_reaches_the_work_and_closing_ends_what_is_left() -> None:
    started, cancelled = threading.Semaphore(0), threading.Semaphore(0)

    async def work() -> None:
        started.release()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.release()

    async with side_loop("aside") as side:
        running = side.run(work())
        assert await asyncio.to_thread(started.acquire, timeout=30)
        running.cancel()
        assert await asyncio.to_thread(cancelled.acquire, timeout=30)
        left = side.run(work())
        assert await asyncio.to_thread(started.acquire, timeout=30)
    assert cancelled.acquire(blocking=False)
    with pytest.raises(asyncio.CancelledError):
        await left
