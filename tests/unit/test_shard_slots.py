"""The slot supplier: a worker polls for a shard only while its limiter can run one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.worker import SlotMarkUsedContext, SlotPermit, SlotReleaseContext, SlotReserveContext

from activities.upstreams.judgement import Outcome
from activities.upstreams.lanes import Flight
from activities.upstreams.limiter import LOOK_SECONDS, Limiter
from activities.upstreams.slots import MAX_FIRST_WAITING, FirstShardSlots, ShardSlots
from activities.upstreams.waiting_requests import WaitingRequests
from tests.fakes.worker import until

CONTEXT = cast(SlotReserveContext, SimpleNamespace(slot_type="activity"))


class Poller:
    """What the SDK does with a slot supplier: polls that wait for permits, shards that hold them."""

    def __init__(self, maximum: int = 10, kind: type[ShardSlots] = ShardSlots) -> None:
        self.limiter = Limiter(maximum)
        self.slots = kind(self.limiter)
        self.polls: list[asyncio.Task[SlotPermit]] = []
        self.shards: list[tuple[SlotPermit, ExitStack]] = []
        self.flying: list[Flight] = []

    async def poll(self, count: int = 1) -> None:
        self.polls += [asyncio.create_task(self.slots.reserve_slot(CONTEXT)) for _ in range(count)]
        await self.settle()

    @property
    def out(self) -> list[asyncio.Task[SlotPermit]]:
        """Polls with a permit, which may bring a shard at any moment."""
        return [poll for poll in self.polls if poll.done()]

    @property
    def waiting(self) -> list[asyncio.Task[SlotPermit]]:
        return [poll for poll in self.polls if not poll.done()]

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    def receive(self) -> SlotPermit:
        """A poll brings a shard; the SDK says so from a thread."""
        poll = self.out[0]
        self.polls.remove(poll)
        permit = poll.result()
        in_thread(lambda: self.slots.mark_slot_used(cast(SlotMarkUsedContext, SimpleNamespace(permit=permit))))
        return permit

    def run(self, permit: SlotPermit, requests: int) -> None:
        """The activity has read its shard, and sends."""
        held = ExitStack()
        queue = WaitingRequests("b", list(range(requests)), lambda number, flight: self.flying.append(flight))
        held.enter_context(self.slots.running(requests, lambda: len(queue.pending)))
        self.limiter.add(queue, lambda: None)
        self.shards.append((permit, held))

    def end(self) -> None:
        permit, held = self.shards.pop(0)
        held.close()
        self.release(permit)

    def release(self, permit: SlotPermit) -> None:
        in_thread(lambda: self.slots.release_slot(SlotReleaseContext(slot_info=None, permit=permit)))

    def answer(self, count: int) -> None:
        for _ in range(count):
            self.limiter.finished(self.flying.pop(0), Outcome.ANSWERED)

    async def stop(self) -> None:
        for poll in self.polls:
            poll.cancel()
        await asyncio.gather(*self.polls, return_exceptions=True)


def in_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


async def test_a_poll_that_is_out_counts_as_a_shard_of_the_size_of_late() -> None:
    poller = Poller(maximum=100)
    await poller.poll(5)
    assert len(poller.out) == 2  # of an unknown size: taken for a whole limit each, and one ahead
    poller.run(poller.receive(), 10)
    await poller.poll(20)
    # 10 run, and with 9 polls of 10 expected a hundred are there or on their way; one more begins below the limit.
    assert len(poller.out) == 10
    await poller.stop()


async def test_single_requests_are_fetched_up_to_the_limit() -> None:
    poller = Poller(maximum=6)
    await poller.poll(20)
    poller.run(poller.receive(), 1)
    await poller.settle()
    assert len(poller.out) + len(poller.shards) == 7
    await poller.stop()


async def test_a_small_batch_in_between_lets_no_large_shards_pile_up() -> None:
    poller = Poller(maximum=100)
    await poller.poll(1)
    poller.run(poller.receive(), 60)
    await poller.poll(1)
    poller.run(poller.receive(), 1)  # the next may be of the large batch again
    await poller.poll(5)
    assert len(poller.out) == 1
    await poller.stop()


async def test_nothing_is_fetched_while_requests_wait_here_already() -> None:
    poller = Poller(maximum=10)
    await poller.poll(1)
    poller.run(poller.receive(), 50)
    await poller.poll(2)
    assert (poller.out, poller.limiter.in_flight, poller.limiter.waiting) == ([], 10, 40)
    poller.answer(39)
    await poller.settle()
    assert poller.out == []
    poller.answer(11)
    await poller.settle()
    assert len(poller.out) >= 1
    await poller.stop()


async def test_a_shard_between_its_arrival_and_its_first_request_is_expected_still() -> None:
    poller = Poller(maximum=10)
    await poller.poll(3)
    first = poller.receive()
    await poller.settle()
    assert len(poller.out) == 1  # marked used, not running yet: it counts as if it were on its way
    poller.run(first, 10)
    await poller.settle()
    assert len(poller.out) == 1
    await poller.stop()


async def test_a_permit_that_was_never_used_makes_room() -> None:
    poller = Poller(maximum=10)
    await poller.poll(3)
    unused = poller.out[0]
    poller.polls.remove(unused)
    poller.release(unused.result())
    await poller.settle()
    assert len(poller.out) == 2
    await poller.stop()


async def test_a_shard_that_ends_makes_room() -> None:
    poller = Poller(maximum=10)
    await poller.poll(4)
    for _ in range(2):
        poller.run(poller.receive(), 10)
    await poller.settle()
    assert poller.out == []
    poller.answer(20)
    poller.end()
    poller.end()
    await poller.settle()
    assert len(poller.out) == 2
    await poller.stop()


async def test_nothing_is_fetched_during_a_pause_and_its_end_is_noticed() -> None:
    poller = Poller(maximum=4)
    await poller.poll(1)
    poller.run(poller.receive(), 4)
    poller.limiter.finished(poller.flying.pop(0), Outcome.UNREACHABLE)
    poller.answer(3)
    poller.end()
    await poller.poll(3)
    assert poller.out == []
    await until(lambda: len(poller.out) >= 1)
    await poller.stop()


async def test_nothing_is_fetched_while_blocked_or_draining() -> None:
    poller = Poller(maximum=4)
    poller.limiter.block()
    await poller.poll(2)
    assert poller.out == []
    poller.limiter.unblock()
    await poller.settle()
    assert len(poller.out) == 2
    poller.limiter.drain(0)
    await poller.poll(1)
    assert len(poller.waiting) == 1
    await poller.stop()


async def test_there_are_no_eager_activities() -> None:
    assert Poller().slots.try_reserve_slot(CONTEXT) is None


# Lost wake-ups


@pytest.mark.parametrize("woken_first", [True, False])
async def test_a_cancelled_poll_passes_its_turn_on(woken_first: bool) -> None:
    poller = Poller(maximum=1)
    poller.limiter.block()
    await poller.poll(2)
    first, second = poller.waiting
    if woken_first:
        poller.limiter.unblock()  # wakes the first, which has not run yet
        first.cancel()
    else:
        first.cancel()
        poller.limiter.unblock()
    await poller.settle()
    assert first.cancelled()
    assert second.done()
    await poller.stop()


@given(st.integers(1, 20), st.integers(0, 2**32), st.integers(20, 80))
async def test_whatever_happens_no_poll_waits_while_there_is_room(maximum: int, seed: int, steps: int) -> None:
    chance = random.Random(seed)
    poller = Poller(maximum)
    blocked = False
    for _ in range(steps):
        match chance.randrange(7):
            case 0:
                await poller.poll(chance.randrange(4))
            case 1 if poller.out:
                permit = poller.receive()
                if chance.random() < 0.5:
                    await poller.settle()
                poller.run(permit, chance.choice([1, 3, 50]))
            case 2 if poller.limiter.in_flight:
                poller.answer(chance.randint(1, poller.limiter.in_flight))
            case 3 if poller.shards and not poller.limiter.in_flight:
                poller.end()
            case 4 if poller.waiting:
                poll = chance.choice(poller.waiting)
                poll.cancel()
                poller.polls.remove(poll)
                with contextlib.suppress(asyncio.CancelledError):
                    poller.release(await poll)
            case 5:
                blocked = not blocked
                if blocked:
                    poller.limiter.block()
                else:
                    poller.limiter.unblock()
            case _:
                pass
        if chance.random() < 0.7:
            await poller.settle()
            if poller.waiting:
                assert not poller.slots._may_poll()  # pyright: ignore[reportPrivateUsage]
    await poller.stop()


# First shards: what a full worker takes in of small batches


async def test_a_full_worker_takes_some_in_still() -> None:
    poller = Poller(maximum=4, kind=FirstShardSlots)
    large = WaitingRequests("large", list(range(100)), lambda number, flight: poller.flying.append(flight))
    poller.limiter.add(large, lambda: None)
    assert not poller.limiter.may_fetch(0)
    for _ in range(MAX_FIRST_WAITING + 3):
        await poller.poll(2)
        if poller.out:
            poller.run(poller.receive(), 1)
    assert (len(poller.shards), poller.slots.waiting, poller.out) == (MAX_FIRST_WAITING, MAX_FIRST_WAITING, [])
    poller.answer(2)  # the batches take turns: one of these two places is for one that waits here
    await poller.settle()
    assert poller.slots.waiting == MAX_FIRST_WAITING - 1
    assert len(poller.out) == 1
    await poller.stop()


async def test_a_first_shard_that_waits_keeps_no_large_shard_out() -> None:
    limiter = Limiter(4)
    first_slots = FirstShardSlots(limiter)
    queue = WaitingRequests("small", list(range(12)), lambda number, flight: None)
    with first_slots.running(12, lambda: len(queue.pending)):
        limiter.add(queue, lambda: None)
        assert first_slots.waiting == 8
        for slots, is_open in ((ShardSlots(limiter), False), (ShardSlots(limiter, first_slots), True)):
            poll = asyncio.create_task(slots.reserve_slot(CONTEXT))
            for _ in range(30):
                await asyncio.sleep(0)
            assert poll.done() is is_open
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)


async def test_nothing_is_taken_in_while_the_upstream_is_away() -> None:
    poller = Poller(maximum=4, kind=FirstShardSlots)
    poller.limiter.block()
    await poller.poll(1)
    assert not poller.out
    poller.limiter.unblock()
    await poller.settle()
    assert len(poller.out) == 1
    await poller.stop()


async def test_first_shards_are_polled_now_and_then_while_every_model_is_paused() -> None:
    """What it takes in is most likely for such a model, and is handed back at once: that is no reason to ask again."""
    now = 0.0
    limiter = Limiter(4, clock=lambda: now)
    first_slots = FirstShardSlots(limiter)
    flying: list[Flight] = []
    queue = WaitingRequests("b", [1, 2, 3, 4], lambda number, flight: flying.append(flight), "m")
    limiter.add(queue, lambda: None)
    for flight in flying[:]:
        limiter.finished(flight, Outcome.OVERLOADED, 60.0)
    assert limiter.pause_for("m") > 0
    taken = 0
    for step in range(20):
        now = 0.1 * step
        poll = asyncio.create_task(first_slots.reserve_slot(CONTEXT))
        for _ in range(30):
            await asyncio.sleep(0)
        if not poll.done():
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)
            continue
        taken += 1
        held: list[int] = []
        late = WaitingRequests(f"late-{step}", [1], lambda number, flight: None, "m")
        first_slots.mark_slot_used(cast(SlotMarkUsedContext, SimpleNamespace(permit=poll.result())))
        with first_slots.running(1, lambda late=late: len(late.pending)):
            limiter.add(late, lambda held=held: held.append(1))
        assert held
        first_slots.release_slot(SlotReleaseContext(slot_info=None, permit=poll.result()))
        for _ in range(30):
            await asyncio.sleep(0)
    assert 1 <= taken <= 2 / LOOK_SECONDS
