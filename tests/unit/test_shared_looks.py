"""Looks that are shared: how many are made, how old their answers are, and who gets which."""

from __future__ import annotations

import asyncio

import pytest

from api.gateway.shared_looks import SharedLooks


class Watched:
    """Something to look at: counts the looks, and lets each take until it is released."""

    def __init__(self) -> None:
        self.looks = 0
        self.release = asyncio.Event()
        self.release.set()
        self.error: Exception | None = None

    async def look(self) -> int:
        self.looks += 1
        number = self.looks
        await self.release.wait()
        if self.error:
            raise self.error
        return number


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def shared(clock: Clock, maximum: int = 10) -> SharedLooks[str, int]:
    return SharedLooks(0.25, maximum, clock)


async def test_a_hundred_who_ask_at_once_share_one_look() -> None:
    watched, looks = Watched(), shared(Clock())
    assert await asyncio.gather(*(looks.get("a", watched.look) for _ in range(100))) == [1] * 100
    assert watched.looks == 1


async def test_an_answer_is_kept_from_the_begin_of_its_look_and_no_longer() -> None:
    watched, clock = Watched(), Clock()
    looks = shared(clock)
    watched.release.clear()
    first = asyncio.create_task(looks.get("a", watched.look))
    await asyncio.sleep(0)
    clock.now += 0.2
    watched.release.set()
    assert await first == 1
    clock.now += 0.05
    assert await looks.get("a", watched.look) == 1
    clock.now += 0.01
    assert await looks.get("a", watched.look) == 2


async def test_while_a_look_takes_long_nobody_begins_another() -> None:
    watched, clock = Watched(), Clock()
    looks = shared(clock)
    watched.release.clear()
    asking: list[asyncio.Task[int]] = []
    for _ in range(5):
        asking.append(asyncio.create_task(looks.get("a", watched.look)))
        await asyncio.sleep(0)
        clock.now += 1
    watched.release.set()
    assert await asyncio.gather(*asking) == [1] * 5
    assert await looks.get("a", watched.look) == 2  # the long one was too old when it ended


async def test_keys_share_nothing() -> None:
    watched, looks = Watched(), shared(Clock())
    assert await asyncio.gather(looks.get("a", watched.look), looks.get("b", watched.look)) == [1, 2]


async def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    watched, looks = Watched(), shared(Clock())
    watched.error = ValueError("broken")
    answers = await asyncio.gather(*(looks.get("a", watched.look) for _ in range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["broken"] * 3
    assert watched.looks == 1
    watched.error = None
    assert await looks.get("a", watched.look) == 2


async def test_who_leaves_does_not_take_the_look_along() -> None:
    watched, looks = Watched(), shared(Clock())
    watched.release.clear()
    leaving, staying = (asyncio.create_task(looks.get("a", watched.look)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    watched.release.set()
    assert await staying == 1


async def test_after_a_change_nobody_gets_what_was_seen_before_it() -> None:
    watched, looks = Watched(), shared(Clock())
    watched.release.clear()
    early = asyncio.create_task(looks.get("a", watched.look))
    await asyncio.sleep(0)
    looks.forget("a")
    late = asyncio.create_task(looks.get("a", watched.look))
    await asyncio.sleep(0)
    watched.release.set()
    assert (await early, await late) == (1, 2)
    assert await looks.get("a", watched.look) == 2
    looks.forget("a")
    assert looks.last("a") is None


async def test_memory_is_bounded() -> None:
    watched, clock = Watched(), Clock()
    looks = shared(clock, maximum=2)
    for key in ("a", "b", "c"):
        await looks.get(key, watched.look)
    assert [looks.last(key) is None for key in ("a", "b", "c")] == [True, False, False]
