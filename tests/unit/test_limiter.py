"""How many requests are in flight, whose turn it is, and when nothing is sent. Time is a number here."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.adaptive_limit import FIRST_PAUSE, LONGEST_PAUSE
from activities.limiter import Limiter, Queue, Signal
from tests.fakes.worker import until


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Upstream:
    """Shards in front of a limiter, and the requests that it has let through."""

    maximum: int = 4
    clock: Clock = field(default_factory=Clock)
    flying: list[tuple[str, int, float, int]] = field(default_factory=list[tuple[str, int, float, int]])
    order: list[str] = field(default_factory=list[str])
    replicas: int = 1
    told: list[str] = field(default_factory=list[str])
    """Shards that were told to hold back, once for each time."""

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.maximum, self.clock, self.replicas)
        self.changes = 0
        self.limiter.on_change = self._changed

    def _changed(self) -> None:
        self.changes += 1

    def shard(self, name: str, requests: int, batch: str = "") -> Queue:
        def start(number: int, replica: int) -> None:
            assert not self.limiter.held_back
            self.flying.append((name, number, self.clock.now, replica))
            self.order.append(name)
            assert len(self.flying) == self.limiter.in_flight
            there = sum(one == replica for _, _, _, one in self.flying)
            assert there <= self.limiter._replicas[replica].adaptive.limit  # pyright: ignore[reportPrivateUsage]

        def held_back() -> None:
            self.told.append(name)
            self.limiter.withdraw(queue)

        queue = Queue(batch or name, list(range(requests)), start)
        self.limiter.add(queue, held_back)
        return queue

    def answer(self, count: int = 1, signal: Signal = Signal.ANSWERED, retry_after: float | None = None) -> None:
        for _ in range(count):
            _, _, sent_at, replica = self.flying.pop(0)
            self.limiter.finished(signal, sent_at, retry_after, "why", replica)

    def volley(self, signal: Signal, retry_after: float | None = None) -> None:
        """Send as many as it lets, and have them all end so a second later."""
        self.shard("volley", self.maximum)
        self.clock.now += 1
        self.answer(len(self.flying), signal, retry_after)


# Turns


async def test_batches_are_served_in_turn_however_long_their_queues() -> None:
    up = Upstream(maximum=2)
    up.shard("big", 50)
    up.shard("small", 2)
    up.shard("middle", 3)
    up.answer(9)
    assert up.order[2:] == ["big", "small", "middle"] * 2 + ["big", "middle", "big"]


async def test_shards_of_one_batch_share_its_turn() -> None:
    up = Upstream(maximum=1)
    for number in range(5):
        up.shard(f"a{number}", 2, batch="a")
    up.shard("b", 3)
    up.answer(6)
    assert up.order == ["a0", "a0", "b", "a1", "b", "a1", "b"]


async def test_requests_of_a_shard_go_in_order_and_each_once() -> None:
    up = Upstream(maximum=3)
    up.shard("a", 20)
    numbers: list[int] = []
    while up.flying:
        numbers.append(up.flying[0][1])
        up.answer()
    assert numbers == list(range(20))
    assert (up.limiter.in_flight, up.limiter.waiting) == (0, 0)


async def test_what_is_withdrawn_is_not_sent_and_what_flies_goes_on() -> None:
    up = Upstream(maximum=2)
    queue = up.shard("a", 5)
    up.shard("b", 1)
    assert list(queue.pending) == [2, 3, 4]
    up.limiter.withdraw(queue)
    assert (up.limiter.in_flight, up.limiter.waiting) == (2, 1)
    up.limiter.withdraw(queue)
    assert not queue.pending
    up.answer(2)
    assert up.order == ["a", "a", "b"]


# Overload


async def test_a_volley_of_refusals_halves_the_limit_once() -> None:
    up = Upstream(maximum=64)
    up.volley(Signal.OVERLOADED)
    assert up.limiter.limit == 32
    assert not up.limiter.held_back
    assert up.limiter.reason == "why"


async def test_refusals_after_an_answer_halve_it_again_down_to_one() -> None:
    up = Upstream(maximum=64)
    for _ in range(12):
        before = up.limiter.limit
        up.volley(Signal.OVERLOADED)
        assert up.limiter.limit == max(1.0, before / 2)
        up.shard("probe", 1)
        up.answer()
    assert up.limiter.limit < 3


async def test_refusals_and_no_answer_in_between_are_an_outage() -> None:
    up = Upstream(maximum=64)
    up.volley(Signal.OVERLOADED)
    up.volley(Signal.OVERLOADED)
    assert up.limiter.limit == 1
    assert up.limiter.pause_left == FIRST_PAUSE


async def test_after_an_outage_that_began_as_overload_the_way_back_is_fast() -> None:
    up = Upstream(maximum=64)
    up.volley(Signal.OVERLOADED)
    up.volley(Signal.OVERLOADED)
    up.clock.now += FIRST_PAUSE + 0.001
    up.shard("a", 200)
    up.answer(63)
    assert up.limiter.limit == 64


async def test_it_climbs_fast_to_what_the_upstream_let_in_and_slowly_from_there() -> None:
    up = Upstream(maximum=64)
    up.shard("a", 2000)
    up.clock.now += 1
    up.answer(24, Signal.OVERLOADED)
    assert (up.limiter.limit, len(up.flying)) == (32, 40)
    up.answer(8)
    assert up.limiter.limit == 40  # one for each answer
    up.answer(40)
    assert 40 < up.limiter.limit < 41  # about half of one for each round
    up.answer(1900)
    assert 50 < up.limiter.limit <= 64


async def test_unclear_ends_change_nothing() -> None:
    up = Upstream(maximum=8)
    up.volley(Signal.UNCLEAR)
    assert (up.limiter.limit, up.limiter.held_back, up.limiter.reason) == (8, False, "")


# Pauses


@pytest.mark.parametrize("signal", [Signal.OVERLOADED, Signal.UNREACHABLE])
async def test_retry_after_pauses_all_shards(signal: Signal) -> None:
    up = Upstream(maximum=4)
    up.shard("a", 10)
    up.shard("b", 10)
    up.clock.now += 1
    up.answer(1, signal, retry_after=20.0)
    assert sorted(set(up.told)) == ["a", "b"]
    assert (up.limiter.waiting, up.limiter.pause_left) == (0, 20.0)
    assert not up.limiter.room(0)

    up.told.clear()
    up.clock.now += 19.9
    up.shard("c", 1)
    assert up.told == ["c"]
    up.clock.now += 0.2
    assert not up.limiter.held_back
    assert len(up.flying) == 3


async def test_a_shorter_retry_after_does_not_shorten_a_pause() -> None:
    up = Upstream(maximum=3)
    up.shard("a", 3)
    up.clock.now += 1
    up.answer(1, Signal.OVERLOADED, retry_after=30.0)
    up.answer(1, Signal.OVERLOADED, retry_after=5.0)
    assert up.limiter.pause_left == 30.0
    up.answer(1, Signal.OVERLOADED, retry_after=40.0)
    assert up.limiter.pause_left == 40.0


async def test_pauses_grow_while_nothing_gets_through_and_stay_bounded() -> None:
    up = Upstream(maximum=16)
    pauses: list[float] = []
    for round_number in range(8):
        up.shard("a", 16)
        assert len(up.flying) == (1 if round_number else 16)  # one probe
        up.clock.now += 1
        up.answer(len(up.flying), Signal.UNREACHABLE)  # a volley counts once
        pauses.append(up.limiter.pause_left)
        up.clock.now += up.limiter.pause_left + 0.001
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert set(pauses[4:]) == {LONGEST_PAUSE}

    up.shard("a", 40)
    up.answer(30)
    assert up.limiter.limit > 8  # back fast
    up.clock.now += 1
    up.answer(1, Signal.UNREACHABLE)
    assert up.limiter.pause_left == FIRST_PAUSE


async def test_the_end_of_a_pause_is_announced() -> None:
    up = Upstream(maximum=1)
    up.shard("a", 1)
    up.clock.now += 1
    up.answer(1, Signal.OVERLOADED, retry_after=0.01)
    changes = up.changes
    up.clock.now += 1
    await until(lambda: up.changes > changes)


# Replicas


@dataclass
class Replicas:
    """Requests of one shard in front of several replicas."""

    count: int
    maximum: int = 4
    clock: Clock = field(default_factory=Clock)
    flying: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """Replica and time of each."""
    told: int = 0

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.maximum, self.clock, replicas=self.count)

    def send(self, requests: int) -> None:
        def start(number: int, replica: int) -> None:
            self.flying.append((replica, self.clock.now))

        def held_back() -> None:
            self.told += 1
            self.limiter.withdraw(queue)

        queue = Queue("b", list(range(requests)), start)
        self.limiter.add(queue, held_back)

    def at(self, replica: int) -> int:
        return [number for number, _ in self.flying].count(replica)

    def end(self, replica: int, signal: Signal = Signal.ANSWERED, count: int = 1) -> None:
        for _ in range(count):
            index = [number for number, _ in self.flying].index(replica)
            _, sent_at = self.flying.pop(index)
            self.limiter.finished(signal, sent_at, None, "why", replica)


async def test_the_least_busy_replica_is_chosen_and_each_has_a_limit_of_its_own() -> None:
    them = Replicas(3)
    them.send(6)
    assert [them.at(replica) for replica in range(3)] == [2, 2, 2]
    them.end(1, count=2)
    them.send(20)
    assert [them.at(replica) for replica in range(3)] == [4, 4, 4]
    assert (them.limiter.maximum, them.limiter.limit, them.limiter.waiting) == (12, 12, 12)
    them.clock.now += 1
    them.end(2, Signal.OVERLOADED)
    assert them.limiter.limit == 10
    assert [them.at(replica) for replica in range(3)] == [4, 4, 3]


async def test_a_replica_that_is_away_is_set_aside_until_it_answers_again() -> None:
    them = Replicas(2)
    them.send(30)
    them.clock.now += 1
    them.end(0, Signal.UNREACHABLE, count=4)
    assert (them.at(0), them.at(1), them.limiter.held_back, them.told) == (0, 4, False, 0)
    them.end(1, count=4)
    assert (them.at(0), them.at(1)) == (0, 4)
    them.clock.now += FIRST_PAUSE + 0.001
    them.end(1)
    assert (them.at(0), them.at(1)) == (1, 4)  # one asks after it
    them.end(0, Signal.UNREACHABLE)
    assert (them.at(0), them.at(1)) == (0, 4)
    them.clock.now += 2 * FIRST_PAUSE + 0.001
    them.end(1)
    them.end(0)
    assert them.at(0) == 2  # back, and faster with each answer
    assert them.told == 0


async def test_the_end_of_one_replicas_pause_lets_in_what_waits() -> None:
    them = Replicas(2, maximum=1)
    them.send(5)
    them.clock.now += 1
    them.limiter.finished(Signal.OVERLOADED, them.flying.pop(0)[1], 0.01, "why", 0)
    assert [replica for replica, _ in them.flying] == [1]
    them.clock.now += 1
    await until(lambda: them.at(0) == 1)


async def test_when_all_replicas_are_away_everything_is_held_back() -> None:
    them = Replicas(2)
    them.send(30)
    them.clock.now += 1
    them.end(0, Signal.UNREACHABLE)
    them.clock.now += 0.2
    them.end(1, Signal.UNREACHABLE)
    assert (them.limiter.held_back, them.told, them.limiter.waiting) == (True, 1, 0)
    assert them.limiter.pause_left == pytest.approx(FIRST_PAUSE - 0.2)  # until the first of them is asked again
    assert not them.limiter.room(0)


async def test_what_hangs_at_a_replica_that_is_away_takes_no_room() -> None:
    them = Replicas(2)
    them.send(8)
    them.clock.now += 1
    them.end(0, Signal.UNREACHABLE)
    them.end(1, count=4)
    assert (them.at(0), them.at(1)) == (3, 0)
    assert them.limiter.room(4)
    assert not them.limiter.room(6)


async def test_a_replica_that_only_fails_is_set_aside_where_another_answers() -> None:
    them = Replicas(2, maximum=20)
    them.send(100)
    them.clock.now += 1
    them.end(0, Signal.DROPPED, count=10)
    them.end(0, Signal.UNCLEAR, count=10)  # so far nothing says that it is the replica
    assert (them.at(0), them.at(1)) == (20, 20)
    them.end(1)
    them.end(0, Signal.UNCLEAR)
    assert (them.at(0), them.at(1), them.told) == (19, 20, 0)
    them.clock.now += FIRST_PAUSE + 0.001
    them.end(0, Signal.DROPPED, count=19)
    assert them.at(0) == 1
    them.end(0)
    assert them.at(0) == 2
    them.end(0, Signal.UNCLEAR, count=2)
    assert them.at(0) == 2


# Holding back


async def test_block_holds_everybody_back_until_the_last_unblock() -> None:
    up = Upstream(maximum=2)
    up.shard("a", 5)
    up.limiter.block()
    up.limiter.block()
    assert up.told == ["a", "a"]
    up.answer(2)
    assert up.flying == []
    up.limiter.unblock()
    up.shard("b", 1)
    assert (up.told[-1], up.flying) == ("b", [])
    changes = up.changes
    up.limiter.unblock()
    assert up.changes > changes
    up.shard("c", 1)
    assert len(up.flying) == 1


async def test_who_has_left_is_told_nothing() -> None:
    up = Upstream()
    told: list[str] = []
    up.limiter.add(Queue("a", [1], lambda number, replica: None), lambda: told.append("a"))
    up.limiter.leave(lambda: None)  # somebody else
    up.limiter.block()
    assert told == ["a"]

    def callback() -> None:
        told.append("b")

    up.limiter.unblock()
    up.limiter.add(Queue("b", [1], lambda number, replica: None), callback)
    up.limiter.leave(callback)
    up.limiter.drain(0)
    assert told == ["a", "a"]


async def test_drain_is_for_good() -> None:
    up = Upstream(maximum=2)
    up.shard("a", 5)
    up.limiter.drain(0)
    up.answer(2)
    up.shard("b", 1)
    assert (up.told, up.flying, up.limiter.room(0)) == (["a", "b"], [], False)


# Whatever happens

signals = st.sampled_from(list(Signal))
steps = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 9), st.integers(0, 3)),
    st.tuples(st.just("finish"), st.integers(0, 99), signals, st.sampled_from([None, None, 0.3, 7.0])),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.6, 10.0])),
    st.tuples(st.just("withdraw"), st.integers(0, 99)),
    st.tuples(st.sampled_from(["block", "unblock"])),
)


@given(st.integers(1, 6), st.sampled_from([1, 1, 2, 3]), st.lists(steps, max_size=60))
async def test_whatever_happens_the_count_is_right_and_nobody_waits_in_vain(
    maximum: int, replicas: int, happened: list[tuple[str, ...]]
) -> None:
    up = Upstream(maximum=maximum, replicas=replicas)
    limiter = up.limiter
    queues: list[Queue] = []
    blocks = 0
    for what, *arguments in happened:
        numbers: list[int] = [argument for argument in arguments if isinstance(argument, int)]
        if what == "add":
            queues.append(up.shard(f"s{len(queues)}", numbers[0], batch=f"b{numbers[1]}"))
        elif what == "finish" and up.flying:
            up.flying.insert(0, up.flying.pop(numbers[0] % len(up.flying)))
            signal = next(argument for argument in arguments if isinstance(argument, Signal))
            retry_after = next((argument for argument in arguments if isinstance(argument, float)), None)
            up.answer(1, signal, retry_after)
        elif what == "wait":
            up.clock.now += next(argument for argument in arguments if isinstance(argument, float))
        elif what == "withdraw" and queues:
            limiter.withdraw(queues[numbers[0] % len(queues)])
        elif what == "block":
            limiter.block()
            blocks += 1
        elif what == "unblock" and blocks:
            limiter.unblock()
            blocks -= 1
        assert limiter.in_flight == len(up.flying)
        assert limiter.waiting == sum(len(queue.pending) for queue in queues)
        assert replicas <= limiter.limit <= maximum * replicas
        if limiter.held_back:
            assert limiter.waiting == 0  # what waits here is out of reach of everybody else
        elif limiter.waiting and replicas == 1:
            assert limiter.in_flight >= int(limiter.limit)
            assert not limiter.room(int(limiter.limit))
        elif limiter.waiting:
            assert limiter.in_flight >= 1
