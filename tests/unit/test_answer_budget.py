"""The memory that answers share: bounded in sum, and never a deadlock."""

from __future__ import annotations

import asyncio
import random

from activities.upstreams.answer_budget import AnswerBudget


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_fits_does_not_wait() -> None:
    budget = AnswerBudget(100)
    async with asyncio.timeout(0):
        await budget.held().grow(60)
        await budget.held().grow(40)
    assert budget.used == 100


async def test_one_goes_beyond_and_the_next_waits_for_room() -> None:
    budget = AnswerBudget(100)
    first, second, third = budget.held(), budget.held(), budget.held()
    await first.grow(90)
    await second.grow(50)  # it alone
    await second.grow(50)
    waiting = asyncio.create_task(third.grow(20))
    await turn()
    assert not waiting.done()
    first.release()
    await turn()
    assert not waiting.done()  # what went beyond is still too much
    second.release()
    await waiting
    assert budget.used == 20


async def test_no_answer_waits_for_ever_and_no_sum_is_too_large() -> None:
    """Many answers that come in pieces, all begun before any has ended."""
    maximum, largest = 1000, 400
    budget = AnswerBudget(maximum)
    chance = random.Random(7)
    peak = 0

    async def answer(size: int) -> None:
        nonlocal peak
        held = budget.held()
        while size > 0:
            piece = min(size, chance.randint(1, 60))
            await held.grow(piece)
            size -= piece
            peak = max(peak, budget.used)
            await asyncio.sleep(0)
        for _ in range(chance.randint(0, 20)):  # until it is stored
            await asyncio.sleep(0)
        held.release()
        held.release()

    async with asyncio.timeout(30):
        await asyncio.gather(*(answer(chance.randint(1, largest)) for _ in range(300)))
    assert maximum < peak <= maximum + largest
    assert budget.used == 0


async def test_who_is_cancelled_takes_no_room_with_it() -> None:
    budget = AnswerBudget(10)
    first, second = budget.held(), budget.held()
    await first.grow(20)
    gone, stays = (asyncio.create_task(held.grow(5)) for held in (budget.held(), second))
    await turn()
    gone.cancel()
    first.release()
    await stays
    await asyncio.gather(gone, return_exceptions=True)
    assert budget.used == 5
