"""How many requests in flight an upstream is worth, found out while it works: just above the knee of its throughput.

Where the engine tells its queue, that decides. Each worker sees the queue of all, so several workers share an engine
without adding up.

Where it does not, throughput and latency decide. Throughput is taken by Little's law, as the requests in flight over
the seconds that a unit of work took. A level is compared with one above or below it: as long as more in flight brings
more throughput, the level grows, by doubling at first. Once it does not, the lower level times the gain in throughput
is the knee, which is what BBR calls the bandwidth-delay product (Cardwell et al., "BBR: Congestion-Based Congestion
Control", ACM Queue 14(5), 2016). From then on the level is tested now and then in both directions. The family of rules
is that of gradient limits: TCP Vegas, and ``VegasLimit`` and ``Gradient2Limit`` of Netflix' concurrency-limits
(https://github.com/Netflix/concurrency-limits). These hold the latency near that of an idle server, which suits people
who wait for answers. An engine that batches takes longer for each request the more it has, and does more by it; so here
it is the gain in throughput that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from activities.upstreams.engine_load import EngineLoad

START: Final = 16
FLOOR: Final = 2.0
"""One that is worked on, and one that is there when it is done."""

FULL: Final = 0.8
"""Of the level in flight; what met less says nothing of it."""

MARGIN: Final = 1.15
"""Times the knee."""
GROWING: Final = 0.15
"""Of a rise in flight must come back as throughput, or the level is above the knee."""
CLIMBING: Final = 0.4
"""The same in the climb from the start, which measures by few answers."""
FIRST_STEP: Final = 3.0
MAX_STEP: Final = 1.5
LAST_STEP: Final = 1.25
"""Factors between two levels that are compared: in the climb, and later on."""
MAX_PATIENCE: Final = 16
"""Measurements between two tests of a level that has proved right."""
MIN_ANSWERS_IN_CLIMB: Final = 12
MIN_ANSWERS: Final = 128
"""In a measurement."""

STRAGGLES: Final = 12.0
"""Times the usual latency."""

QUEUE: Final = 0.1
"""Of what the engine runs may wait in it."""
TOLD_SECONDS: Final = 3.0
"""For so long what the engine has told of its queue decides alone."""
SEEN_SECONDS: Final = 0.5
"""After a rise; before, its requests may not have reached the engine."""
CACHE_FULL: Final = 0.95
PREEMPTED: Final = 0.9
"""Of the requests that ran may run when some lost their place in the cache …"""
HELD_SECONDS: Final = 30.0
"""… and for so long, as after a cut, there may not be more."""


class _Measured(NamedTuple):
    in_flight: float
    speed: float
    """Work done a second."""


class InFlightLevel:
    """For one model on one replica. All times are of the clock that is given."""

    def __init__(self, ceiling: int, clock: Callable[[], float], timeout: float = float("inf")) -> None:
        """Args: ``timeout`` is after how many seconds a request is given up."""
        self.value = float(min(START, ceiling))
        self._ceiling = float(ceiling)
        self._clock = clock
        self._timeout = timeout
        self._latency = 0.0
        # Judged by throughput
        self._reference: _Measured | None = None
        self._before = self.value
        self._step = FIRST_STEP
        self._direction, self._next = 0, 1  # up or down: of the level that is being tried, and of the next
        self._holding = self._patience = 1
        self._is_climbing = True  # from the start; the first knee is not found yet
        self._has_grown = False
        self._begin()
        # Judged by the engine's queue
        self._told_at = self._held_until = self._raised_at = float("-inf")
        self._growth = FIRST_STEP
        self._preemptions = 0.0

    def answered(self, sent_at: float, work: float, in_flight: int) -> bool:
        """A request was done. Returns whether the level was judged anew.

        Args:
            sent_at: when it was sent.
            work: how much it was; tokens, or one where they are not counted.
            in_flight: when it was sent or answered, itself included, and stragglers not.
        """
        now = self._clock()
        seconds = max(now - sent_at, 1e-6)
        self._latency += (seconds - self._latency) * 0.1 if self._latency else seconds
        if now - self._told_at < TOLD_SECONDS:
            self._begin()
        elif sent_at >= self._since and in_flight >= FULL * self.value:
            self._count += 1
            self._work += work
            self._seconds += seconds
            self._in_flight += in_flight
            if self._count >= self._needed:
                self._judge()
                return True
        return False

    @property
    def straggles_after(self) -> float:
        """Seconds in flight after which a request is a straggler: it is not what the level is about."""
        return STRAGGLES * self._latency if self._latency else float("inf")

    def observe_load(self, load: EngineLoad, in_flight: int) -> None:
        """The engine has said what it has to do.

        Args:
            load: of all clients and models together.
            in_flight: of ours, for this model.
        """
        there = load.running + load.waiting
        preempted, self._preemptions = load.preemptions > self._preemptions > 0, load.preemptions
        if not in_flight or in_flight > 2 * there:
            return  # what it counts are not our requests
        self._told_at = self._clock()
        self._reference, self._direction = None, 0
        share = min(1.0, in_flight / there)
        spare = max(1.0, QUEUE * load.running) - load.waiting
        if preempted:
            self._held_until = self._clock() + HELD_SECONDS
            self._set(PREEMPTED * load.running * share)
        elif spare < 0:
            self._growth = LAST_STEP
            self._set(min(self.value, in_flight + spare * share))
        elif in_flight >= FULL * self.value and load.cache_used < CACHE_FULL and self._may_grow():
            if load.waiting:
                self._raise(in_flight + spare * share)
            else:
                self._raise(self.value * self._growth)
                self._growth = min(FIRST_STEP, self._growth * LAST_STEP)

    def _may_grow(self) -> bool:
        now = self._clock()
        return now >= self._held_until and now - self._raised_at >= SEEN_SECONDS

    def _raise(self, value: float) -> None:
        """Unless requests would come near to being given up."""
        if value > self.value and self._latency * value / self.value < self._timeout / 2:
            self._set(max(value, self.value + 1))
            self._raised_at = self._clock()

    def _set(self, value: float) -> None:
        self.value = min(max(value, min(FLOOR, self.value)), self._ceiling)

    def cut(self, value: float) -> None:
        """The upstream refused more, or let requests wait for too long: that is tried again after a while."""
        self.value = min(self.value, value)
        self._is_climbing = False
        self._step = LAST_STEP
        self._patience = min(MAX_PATIENCE, 2 * self._patience)
        self._growth = LAST_STEP
        self._held_until = self._clock() + HELD_SECONDS
        self._settle(1)
        self._begin()

    # Judging by throughput

    def _begin(self) -> None:
        self._since = self._clock()
        self._count = 0
        self._work = self._seconds = self._in_flight = 0.0

    @property
    def _needed(self) -> float:
        if self._is_climbing:
            return max(MIN_ANSWERS_IN_CLIMB, self.value / 2)  # about those that the last step added
        return max(MIN_ANSWERS, 4 * self.value)

    def _judge(self) -> None:
        in_flight = self._in_flight / self._count
        here = _Measured(in_flight, in_flight * self._work / self._seconds)
        self._begin()
        if self._reference and self._direction:
            self._compare(self._reference, here)
            return
        self._reference = _mean(self._reference, here) if self._reference else here
        self._holding -= 1
        if self._holding <= 0:
            self._try(self._next)

    def _try(self, direction: int) -> None:
        self._before, self._direction = self.value, direction
        if direction > 0:
            self._raise(self.value * self._step)
        else:
            self._set(self.value / self._step)
        if self.value == self._before:
            self._settle(-direction)

    def _compare(self, reference: _Measured, here: _Measured) -> None:
        """The level that is tried with the one before it."""
        low, high = sorted((reference, here))
        gain = high.speed / low.speed
        wanted = CLIMBING if self._is_climbing else GROWING
        is_worth_it = math.log(gain) > wanted * math.log(high.in_flight / low.in_flight)
        is_right = is_worth_it == (self._direction > 0)
        if not self._is_climbing:
            self._step = min(MAX_STEP, self._step * LAST_STEP) if is_right else LAST_STEP
        self._patience = 1 if is_right else min(MAX_PATIENCE, 2 * self._patience)
        if is_right and self._direction > 0:
            self._reference = here
            self._has_grown = True
            self._try(1)
            return
        if self._direction > 0:
            self._set(low.in_flight * gain * (MARGIN if self._is_climbing else 1.0))
            if self._is_climbing and self._has_grown:
                self._step = LAST_STEP
            self._is_climbing = False
        else:
            self._set(min(MARGIN * low.in_flight, self._before) if is_right else self._before)
        self._settle(-1 if is_right else -self._direction)

    def _settle(self, following: int) -> None:
        self._reference, self._direction, self._next = None, 0, following
        self._holding = self._patience


def _mean(one: _Measured, other: _Measured) -> _Measured:
    return _Measured((one.in_flight + other.in_flight) / 2, (one.speed + other.speed) / 2)
