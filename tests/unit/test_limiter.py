"""How many requests are in flight, whose turn it is, and when nothing is sent. Time is a number here."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.upstreams.adaptive_limit import FIRST_PAUSE, MAX_PAUSE
from activities.upstreams.judgement import Fault, Outcome
from activities.upstreams.lanes import SPARE, TRUSTED_SECONDS, Flight
from activities.upstreams.level import START
from activities.upstreams.limiter import Limiter
from activities.upstreams.waiting_requests import WaitingRequests
from tests.fakes.worker import until
from workflows.waits import Wait, WaitKind

WHY = Wait(kind=WaitKind.UPSTREAM, subject="it", reason="is why")


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
    flying: list[tuple[str, int, Flight]] = field(default_factory=list[tuple[str, int, Flight]])
    order: list[str] = field(default_factory=list[str])
    replicas: int = 1
    timeout: float = float("inf")
    finds_level: bool = False
    notified: list[str] = field(default_factory=list[str])
    """Shards that were notified to hold back, once for each time."""

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.maximum, self.clock, self.replicas, self.timeout, finds_level=self.finds_level)
        self.changes = 0
        self.limiter.on_change = self._changed

    def _changed(self) -> None:
        self.changes += 1

    def shard(self, name: str, requests: int, batch: str = "", model: str = "") -> WaitingRequests:
        def start(number: int, flight: Flight) -> None:
            assert not self.limiter.is_paused
            assert not self.limiter.pause_for(model, batch or name)
            self.flying.append((name, number, flight))
            self.order.append(name)
            assert len(self.flying) == self.limiter.in_flight
            there = sum(one.replica == flight.replica for _, _, one in self.flying)
            limit = self.limiter._replicas[flight.replica].limit  # pyright: ignore[reportPrivateUsage]
            assert there <= limit + (SPARE if self.finds_level else 0)

        def on_pause() -> None:
            self.notified.append(name)
            self.limiter.withdraw(queue)

        queue = WaitingRequests(batch or name, list(range(requests)), start, model, batch or name)
        self.limiter.add(queue, on_pause)
        return queue

    def answer(self, count: int = 1, outcome: Outcome = Outcome.ANSWERED, retry_after: float | None = None) -> None:
        for _ in range(count):
            _, _, flight = self.flying.pop(0)
            self.limiter.finished(flight, outcome, retry_after, WHY)

    def volley(self, outcome: Outcome, retry_after: float | None = None) -> None:
        """Send as many as it lets, and have them all end so a second later."""
        self.shard("volley", self.maximum)
        self.clock.now += 1
        self.answer(len(self.flying), outcome, retry_after)


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


async def test_a_batch_with_nothing_in_flight_need_not_wait_for_an_answer_of_a_slow_engine() -> None:
    it = Upstream(maximum=100, finds_level=True)
    it.shard("large", 50)
    assert it.order == ["large"] * START
    for name in ("small", "other", "late"):
        it.shard(name, 5)
    assert it.order[START:] == ["small", "other"]
    it.answer()  # which leaves one more than the level in flight
    assert it.order[START + SPARE :] == ["late"]


async def test_more_hang_than_a_level_allows_that_fell_while_others_were_answered() -> None:
    it = Upstream(maximum=100, finds_level=True)
    it.shard("hanging", 11)
    it.clock.now += 0.01
    it.shard("others", START - 11)
    it.clock.now += 0.1
    for _, _, flight in it.flying[11:]:
        it.limiter.finished(flight, Outcome.ANSWERED, work=1.0)
    del it.flying[11:]
    hanging = it.flying[0][2]
    hanging.lane.timed_out(hanging.sent)
    it.shard("more", 5)
    assert "more" not in it.order
    it.clock.now += 2
    it.limiter.observe_load(0, None)
    assert it.order.count("more") == 5


async def test_one_more_is_sent_now_and_then_while_all_that_is_in_flight_hangs() -> None:
    it = Upstream(maximum=100, finds_level=True)
    it.shard("answered", START)
    it.clock.now += 0.1
    flights, it.flying = [flight for _, _, flight in it.flying], []
    for flight in flights:
        it.limiter.finished(flight, Outcome.ANSWERED, work=1.0)
    it.shard("hanging", 11)
    flights[0].lane.timed_out(it.flying[0][2].sent)
    it.shard("more", 20)
    assert "more" not in it.order
    it.clock.now += 2
    it.limiter.observe_load(0, None)
    it.limiter.observe_load(0, None)
    assert it.order.count("more") == 1, "it may be that the engine hangs"
    it.clock.now += 1
    it.limiter.observe_load(0, None)
    assert it.order.count("more") == 1

    it.limiter.finished(it.flying.pop()[2], Outcome.ANSWERED, work=1.0)
    it.limiter.observe_load(0, None)
    assert it.order.count("more") == 1 + int(it.limiter.limit) - 11, "it is only those that hang"


@pytest.mark.parametrize("finds_level", [False, True])
async def test_what_the_operator_or_the_upstream_allows_is_not_exceeded(finds_level: bool) -> None:
    it = Upstream(maximum=12, finds_level=finds_level)
    it.shard("large", 50)
    assert len(it.order) == 12
    it.shard("small", 5)
    assert len(it.order) == 12
    it.clock.now += 1
    it.answer(12, Outcome.OVERLOADED)
    it.clock.now += 10
    while it.limiter.in_flight < int(it.limiter.limit):
        it.shard("large again", 1)
    sent = len(it.order)
    it.shard("another", 5)
    assert len(it.order) == sent


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
    up.volley(Outcome.OVERLOADED)
    assert up.limiter.limit == 32
    assert not up.limiter.is_paused
    assert up.limiter.wait == WHY


async def test_refusals_after_an_answer_halve_it_again_down_to_one() -> None:
    up = Upstream(maximum=64)
    for _ in range(5):
        before = up.limiter.limit
        up.volley(Outcome.OVERLOADED)
        assert up.limiter.limit == max(1.0, before / 2)
        up.clock.now += 1
        up.shard("probe", 1)
        up.answer(1 if len(up.flying) < 2 else 2)
    assert up.limiter.limit < 5


async def test_refusals_and_no_answer_in_between_are_an_outage() -> None:
    up = Upstream(maximum=64)
    up.volley(Outcome.OVERLOADED)
    up.volley(Outcome.OVERLOADED)
    assert up.limiter.limit == 1
    assert up.limiter.pause_for("") == FIRST_PAUSE


async def test_after_an_outage_that_began_as_overload_the_way_back_is_fast() -> None:
    up = Upstream(maximum=64)
    up.volley(Outcome.OVERLOADED)
    up.volley(Outcome.OVERLOADED)
    up.clock.now += FIRST_PAUSE + 0.001
    up.shard("a", 200)
    up.answer(9)
    assert up.limiter.limit == 64  # one, eight, and there


async def test_it_climbs_fast_to_what_the_upstream_let_in_and_slowly_from_there() -> None:
    up = Upstream(maximum=64)
    up.shard("a", 2000)
    up.clock.now += 1
    up.answer(24, Outcome.OVERLOADED)
    assert (up.limiter.limit, len(up.flying)) == (32, 40)
    up.answer(8)
    assert up.limiter.limit == 40  # one for each answer
    up.answer(40)
    assert 40 < up.limiter.limit < 41  # about half of one for each round
    up.answer(1900)
    assert 50 < up.limiter.limit <= 64


async def test_failures_of_everybody_are_an_outage_and_those_of_a_few_are_not() -> None:
    up = Upstream(maximum=64)
    up.shard("a", 64)
    up.clock.now += 1
    up.answer(4, Outcome.FAILED)
    assert (up.limiter.limit, up.limiter.pause_for("")) == (64, 0)
    up.answer(1, Outcome.FAILED)
    assert (up.limiter.limit, up.limiter.pause_for("")) == (1, FIRST_PAUSE)


async def test_one_refused_request_slows_nobody() -> None:
    up = Upstream(maximum=8)
    up.shard("a", 200)
    for _ in range(10):
        up.clock.now += 1
        up.answer(1, Outcome.OVERLOADED, retry_after=600)
        up.clock.now += 1
        up.answer(12)  # among them one that was sent after the refusal
    assert (up.limiter.limit, up.limiter.pause_for("")) == (8, 0)


async def test_timeouts_beside_others_halve_the_limit_once_a_volley() -> None:
    up = Upstream(maximum=64, timeout=2)
    up.shard("a", 500)
    up.clock.now += 1
    up.answer(20)
    up.clock.now += 1
    up.answer(44, Outcome.TIMED_OUT)
    assert (up.limiter.limit, up.limiter.pause_for("")) == (32, 0)


async def test_answers_that_nearly_timed_out_do_not_raise_the_limit() -> None:
    up = Upstream(maximum=64, timeout=2)
    up.shard("a", 500)
    up.clock.now += 2
    up.answer(1, Outcome.TIMED_OUT)
    up.clock.now += 1.5
    up.answer(63)
    assert up.limiter.limit == 32


async def test_a_model_that_refuses_makes_no_other_wait_and_two_speak_for_all() -> None:
    up = Upstream(maximum=8)
    up.shard("a", 9, model="a")
    up.shard("b", 9, model="b")
    up.clock.now += 1
    up.flying.sort(key=lambda one: one[0])
    for _ in range(2):
        up.answer(1, Outcome.OVERLOADED, retry_after=600)
    assert (up.limiter.pause_for("a"), up.limiter.pause_for("b"), up.limiter.pause_left) == (MAX_PAUSE, 0, 0)
    assert set(up.notified) == {"a"}
    up.shard("c", 1, model="b")
    up.flying.sort(key=lambda one: one[0], reverse=True)
    for _ in range(2):
        up.answer(1, Outcome.OVERLOADED, retry_after=20)
    assert up.limiter.pause_left == up.limiter.pause_for("c") == MAX_PAUSE


# Pauses


async def test_a_short_retry_after_pauses_all_shards() -> None:
    up = Upstream(maximum=4)
    up.shard("a", 10)
    up.shard("b", 10)
    up.clock.now += 1
    up.answer(2, Outcome.OVERLOADED, retry_after=3.0)
    assert sorted(set(up.notified)) == ["a", "b"]
    assert (up.limiter.waiting, up.limiter.pause_for("", "c")) == (0, 3.0)
    assert not up.limiter.may_fetch(0)

    up.notified.clear()
    up.clock.now += 2.9
    up.shard("c", 1)
    assert up.notified == ["c"]
    up.clock.now += 0.2
    assert up.limiter.pause_for("", "a") == 0
    assert len(up.flying) == 2


async def test_a_long_retry_after_is_for_the_batch_that_was_refused_and_another_asks_for_itself() -> None:
    up = Upstream(maximum=4)
    up.shard("a", 10)
    up.clock.now += 1
    up.answer(4, Outcome.OVERLOADED, retry_after=600.0)
    assert up.limiter.pause_for("", "a") == TRUSTED_SECONDS
    assert up.limiter.pause_for("", "b") == MAX_PAUSE
    up.clock.now += MAX_PAUSE + 0.001
    up.shard("b", 10)
    up.shard("a again", 10, batch="a")
    assert (up.order[4:], up.notified[-1]) == (["b"], "a again")  # one request, and none of the batch that was notified
    up.answer(1)
    assert up.order[5:] == ["b"] * len(up.flying)
    assert len(up.flying) > 1
    assert up.limiter.pause_for("", "a") == 0  # its cause is gone


async def test_a_batch_that_is_refused_for_long_asks_again_at_growing_intervals() -> None:
    up = Upstream(maximum=4)
    waits: list[float] = []
    for _ in range(6):
        up.shard("a", 10)
        up.clock.now += 1
        *_, flight = up.flying[-1]
        up.answer(len(up.flying), Outcome.OVERLOADED, retry_after=600.0)
        assert await up.limiter.fault(flight, Outcome.OVERLOADED, failed_before=False) is Fault.EVERYBODY
        waits.append(up.limiter.pause_for("", "a"))
        up.clock.now += waits[-1] + 0.001
    assert waits == [60, 120, 240, 480, 600, 600]
    assert len(up.order) <= 5 + 5  # one request each time


@pytest.mark.parametrize("outcome", [Outcome.OVERLOADED, Outcome.FAILED])
async def test_whatever_the_failure_a_long_retry_after_leaves_the_other_batches_free(outcome: Outcome) -> None:
    up = Upstream(maximum=8)
    up.shard("a", 8)
    up.clock.now += 1
    up.answer(8, outcome, retry_after=50.0)
    assert (up.limiter.pause_for("", "a"), up.limiter.pause_for("", "b")) == (50, MAX_PAUSE)


async def test_a_shorter_retry_after_does_not_shorten_a_pause() -> None:
    up = Upstream(maximum=6)
    up.shard("a", 6)
    up.clock.now += 1
    up.answer(2, Outcome.OVERLOADED, retry_after=30.0)
    up.answer(2, Outcome.OVERLOADED, retry_after=5.0)
    assert up.limiter.pause_for("", "a") == 30.0
    up.answer(2, Outcome.OVERLOADED, retry_after=40.0)
    assert up.limiter.pause_for("", "a") == 40.0


async def test_pauses_grow_while_nothing_gets_through_and_stay_bounded() -> None:
    up = Upstream(maximum=16)
    pauses: list[float] = []
    for round_number in range(8):
        up.shard("a", 16)
        assert len(up.flying) == (1 if round_number else 16)  # one probe
        up.clock.now += 1
        up.answer(len(up.flying), Outcome.UNREACHABLE)  # a volley counts once
        pauses.append(up.limiter.pause_for(""))
        up.clock.now += up.limiter.pause_for("") + 0.001
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert set(pauses[4:]) == {MAX_PAUSE}

    up.shard("a", 40)
    up.answer(30)
    assert up.limiter.limit > 8  # back fast
    up.clock.now += 1
    up.answer(1, Outcome.UNREACHABLE)
    assert up.limiter.pause_for("") == FIRST_PAUSE


async def test_the_end_of_a_pause_is_announced() -> None:
    up = Upstream(maximum=1)
    up.shard("a", 1)
    up.clock.now += 1
    up.answer(1, Outcome.UNREACHABLE)
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
    flying: list[Flight] = field(default_factory=list[Flight])
    notified: int = 0

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.maximum, self.clock, replicas=self.count)

    def send(self, requests: int) -> None:
        def start(number: int, flight: Flight) -> None:
            self.flying.append(flight)

        def on_pause() -> None:
            self.notified += 1
            self.limiter.withdraw(queue)

        queue = WaitingRequests("b", list(range(requests)), start)
        self.limiter.add(queue, on_pause)

    def at(self, replica: int) -> int:
        return [flight.replica for flight in self.flying].count(replica)

    def end(self, replica: int, outcome: Outcome = Outcome.ANSWERED, count: int = 1) -> None:
        for _ in range(count):
            flight = self.flying.pop([flight.replica for flight in self.flying].index(replica))
            self.limiter.finished(flight, outcome, None, WHY)


async def test_the_least_busy_replica_is_chosen_and_each_has_a_limit_of_its_own() -> None:
    them = Replicas(3)
    them.send(6)
    assert [them.at(replica) for replica in range(3)] == [2, 2, 2]
    them.end(1, count=2)
    them.send(20)
    assert [them.at(replica) for replica in range(3)] == [4, 4, 4]
    assert (them.limiter.maximum, them.limiter.limit, them.limiter.waiting) == (12, 12, 12)
    them.clock.now += 1
    them.end(2, Outcome.OVERLOADED, count=2)
    assert them.limiter.limit == 10
    assert [them.at(replica) for replica in range(3)] == [4, 4, 2]


async def test_a_replica_that_is_away_is_set_aside_until_it_answers_again() -> None:
    them = Replicas(2)
    them.send(30)
    them.clock.now += 1
    them.end(0, Outcome.UNREACHABLE, count=4)
    assert (them.at(0), them.at(1), them.limiter.is_paused, them.notified) == (0, 4, False, 0)
    them.end(1, count=4)
    assert (them.at(0), them.at(1)) == (0, 4)
    them.clock.now += FIRST_PAUSE + 0.001
    them.end(1)
    assert (them.at(0), them.at(1)) == (1, 4)  # one asks after it
    them.end(0, Outcome.UNREACHABLE)
    assert (them.at(0), them.at(1)) == (0, 4)
    them.clock.now += 2 * FIRST_PAUSE + 0.001
    them.end(1)
    them.end(0)
    assert them.at(0) == 4  # back
    assert them.notified == 0


async def test_the_end_of_one_replicas_pause_lets_in_what_waits() -> None:
    them = Replicas(2, maximum=1)
    them.send(5)
    them.clock.now += 1
    them.limiter.finished(them.flying.pop(0), Outcome.UNREACHABLE, None, WHY)
    assert [flight.replica for flight in them.flying] == [1]
    them.clock.now += 1
    await until(lambda: them.at(0) == 1)


async def test_when_all_replicas_are_away_nothing_is_sent() -> None:
    them = Replicas(2)
    them.send(30)
    them.clock.now += 1
    them.end(0, Outcome.UNREACHABLE)
    them.clock.now += 0.2
    them.end(1, Outcome.UNREACHABLE)
    assert (them.limiter.is_paused, them.notified, them.limiter.waiting) == (True, 1, 0)
    assert them.limiter.pause_left == pytest.approx(FIRST_PAUSE - 0.2)  # until the first of them is asked again
    assert not them.limiter.may_fetch(0)


async def test_what_hangs_at_a_replica_that_is_away_takes_no_room() -> None:
    them = Replicas(2)
    them.send(8)
    them.clock.now += 1
    them.end(0, Outcome.UNREACHABLE)
    them.end(1, count=4)
    assert (them.at(0), them.at(1)) == (3, 0)
    assert them.limiter.may_fetch(4)
    assert not them.limiter.may_fetch(6)


async def test_a_replica_that_only_fails_is_set_aside_where_another_answers() -> None:
    them = Replicas(2, maximum=8)
    them.send(100)
    them.clock.now += 1
    them.end(0, Outcome.FAILED, count=5)
    assert (them.at(0), them.at(1), them.notified) == (3 + 4, 8, 0)  # the sixth would have been the next to fail
    them.end(0, Outcome.DROPPED, count=7)
    them.clock.now += FIRST_PAUSE + 0.001
    them.end(1)
    assert them.at(0) == 1
    them.end(0)
    assert them.at(0) == 8


# Holding back


async def test_block_holds_everybody_back_until_the_last_unblock() -> None:
    up = Upstream(maximum=2)
    up.shard("a", 5)
    up.limiter.block()
    up.limiter.block()
    assert up.notified == ["a", "a"]
    up.answer(2)
    assert up.flying == []
    up.limiter.unblock()
    up.shard("b", 1)
    assert (up.notified[-1], up.flying) == ("b", [])
    changes = up.changes
    up.limiter.unblock()
    assert up.changes > changes
    up.shard("c", 1)
    assert len(up.flying) == 1


async def test_who_has_left_is_not_notified() -> None:
    up = Upstream()
    notified: list[str] = []
    first, second = (WaitingRequests(name, [1], lambda number, flight: None) for name in "ab")
    up.limiter.add(first, lambda: notified.append("a"))
    up.limiter.leave(second)
    up.limiter.block()
    assert notified == ["a"]
    up.limiter.unblock()
    up.limiter.add(second, lambda: notified.append("b"))
    up.limiter.leave(second)
    up.limiter.drain(0)
    assert notified == ["a", "a"]


async def test_drain_is_for_good() -> None:
    up = Upstream(maximum=2)
    up.shard("a", 5)
    up.limiter.drain(0)
    up.answer(2)
    up.shard("b", 1)
    assert (up.notified, up.flying, up.limiter.may_fetch(0)) == (["a", "b"], [], False)


# Whatever happens

outcomes = st.sampled_from(list(Outcome))
steps = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 9), st.integers(0, 3)),
    st.tuples(st.just("finish"), st.integers(0, 99), outcomes, st.sampled_from([None, None, 0.3, 7.0])),
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
    queues: list[WaitingRequests] = []
    blocks = 0
    for what, *arguments in happened:
        numbers: list[int] = [argument for argument in arguments if isinstance(argument, int)]
        if what == "add":
            queues.append(up.shard(f"s{len(queues)}", numbers[0], batch=f"b{numbers[1]}"))
        elif what == "finish" and up.flying:
            up.flying.insert(0, up.flying.pop(numbers[0] % len(up.flying)))
            outcome = next(argument for argument in arguments if isinstance(argument, Outcome))
            retry_after = next((argument for argument in arguments if isinstance(argument, float)), None)
            up.answer(1, outcome, retry_after)
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
        if limiter.is_paused:
            assert limiter.waiting == 0  # what waits here is out of reach of everybody else
        elif limiter.pause_for(""):
            assert limiter.waiting == 0
        elif limiter.waiting and replicas == 1:
            (lane,) = limiter._replicas[0].lanes.values()  # pyright: ignore[reportPrivateUsage]
            assert limiter.in_flight + len(lane.unreported) >= int(limiter.limit)
            assert not limiter.may_fetch(int(limiter.limit))
        elif limiter.waiting:
            assert limiter.in_flight >= 1
