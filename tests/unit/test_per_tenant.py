"""Turns of activities: each tenant has few under way, first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from activities.per_tenant import PerTenant
from tests.fakes.worker import activity_environment


class Work:
    """Activities that wait for their turn, and end it on request."""

    def __init__(self) -> None:
        self.turns = PerTenant(2)
        self.under_way: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, tenant: str) -> None:
        async def work() -> None:
            async with self.turns.turn(tenant):
                self.under_way.append(name)
                try:
                    await self._ends[name].wait()
                finally:
                    self.under_way.remove(name)

        environment, _ = activity_environment()
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(environment.run(work))
        await self._settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait({self._tasks[name]})
        await self._settle()

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
async def work() -> AsyncGenerator[Work]:
    work = Work()
    yield work
    await work.stop()


async def test_a_tenant_has_so_many_under_way_and_the_rest_in_their_order(work: Work) -> None:
    for name in "abcd":
        await work.begin(name, "large")
    assert work.under_way == ["a", "b"]
    await work.end("b")
    assert work.under_way == ["a", "c"]
    await work.end("a")
    assert work.under_way == ["c", "d"]


async def test_tenants_do_not_wait_for_each_other(work: Work) -> None:
    for name in "abc":
        await work.begin(name, "large")
    await work.begin("x", "small")
    assert work.under_way == ["a", "b", "x"]


async def test_one_that_is_cancelled_gives_its_turn_or_its_place_away(work: Work) -> None:
    for name in "abcd":
        await work.begin(name, "large")
    await work.cancel("c")  # it has not begun
    await work.cancel("a")
    assert work.under_way == ["b", "d"]
