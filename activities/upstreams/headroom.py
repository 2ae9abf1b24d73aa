"""A level that leaves a share of an upstream's capacity to its other clients: people who call the engine directly.

Where the engine tells its queue, its capacity is what it runs when requests begin to wait, and all that is in it
together, ours and others', is held below ``1 - headroom`` of that. So whoever comes next finds a free place, and each
request of others is one less of ours. Several workers each see the requests of all and take back their own share.

Where it does not, capacity is the knee of throughput, as :mod:`activities.upstreams.level` finds it. Afterwards a
latency that rises while ours in flight stays the same tells that others are there: the level falls in proportion, as
that of TCP Vegas does, and is back when the latency is.

To look for more capacity lets requests wait for a moment. That is done seldom, and not while others are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from activities.upstreams.engine_load import EngineLoad
from activities.upstreams.level import CACHE_FULL, LAST_STEP, QUEUE, InFlightLevel

FIRST: Final = 4
"""In flight at first: what is too much waits before anybody's requests until the first look."""
STEP: Final = 1.5
"""Factor between two levels that are compared in the climb from there. Where the engine tells its queue, smaller steps
do: what is above its capacity waits before the requests of others."""

PROBE_STEP: Final = 1.1
"""By which the capacity is taken to be larger than it was known, once a look, until requests wait."""
ALONE_SECONDS: Final = 120.0
"""Without a request of others, before more capacity is looked for …"""
SHARED_SECONDS: Final = 1800.0
"""… and with some, after requests last waited: they may be those of other workers of ours, which never go away."""

MIN_ANSWERS: Final = 32
"""In a measurement of the latency."""
USUAL: Final = 1.3
"""Times the lowest latency is within what it varies by itself."""
DOWN: Final = 0.5
UP: Final = 0.005
"""How far the lowest latency follows one measurement that is below or above it. Up slowly: requests may have become
longer, but others who have come must not pass for it."""
HOLDING: Final = 400
"""Measurements before the knee is looked for again."""


class HeadroomLevel(InFlightLevel):
    """For one model on one replica. Its values are whole numbers."""

    def __init__(
        self,
        ceiling: int,
        clock: Callable[[], float],
        timeout: float = float("inf"),
        *,
        headroom: float,
        finds_level: bool = True,
    ) -> None:
        """Args:
        ceiling: what is never exceeded: of a fixed number, what the headroom leaves of it.
        clock: gives seconds.
        timeout: after how many seconds a request is given up.
        headroom: the share of the capacity that is left to others.
        finds_level: whether the level begins low, and not at its ceiling.
        """
        super().__init__(ceiling, clock, timeout)
        self._ours = 1 - headroom
        self._finds_level = finds_level
        self.value = float(min(FIRST, ceiling)) if finds_level else float(ceiling)
        # Judged by the engine's queue
        self._capacity = float("inf")
        self._was_waiting = self._was_full = False
        self._full_at = self._others_at = clock()
        # Judged by throughput, and then by latency
        self._step = STEP
        self._is_climbing = finds_level
        self._is_calibrating = False
        self._best_speed = 0.0
        self._most = self.value
        """The level while the latency is as usual."""
        self._usual = 0.0
        """Seconds of a unit of work."""
        self._measured = 0

    def _set(self, value: float) -> None:
        self.value = float(max(1, int(min(value, self._ceiling) + 1e-6)))

    def cut(self, value: float) -> None:
        """The upstream refused more, or let requests wait for too long: it takes no more than that from all."""
        super().cut(max(1.0, value * self._ours))
        self._capacity = value if math.isinf(self._capacity) else self._capacity
        self._hold(self.value)
        self._measured = HOLDING * 3 // 4  # it may have been for a moment

    # The engine's queue

    def observe_load(self, load: EngineLoad, in_flight: int) -> None:
        preempted, self._preemptions = load.preemptions > self._preemptions > 0, load.preemptions
        if not in_flight or in_flight > 2 * (load.running + load.waiting):
            return  # what it counts are not our requests
        now = self._told_at = self._clock()
        there = max(load.running + load.waiting, in_flight)  # some of ours may be on their way
        lasts, self._was_waiting = self._was_waiting and load.waiting >= 1, load.waiting >= 1
        is_full = preempted or lasts or load.waiting > max(1.0, QUEUE * load.running)
        if is_full:
            self._full_at = now
        if is_full or there - in_flight >= 1:
            self._others_at = now
        if is_full and not self._was_full:
            self._capacity = load.running
        else:  # what waited for its prompt to be read, and not for a place, runs a moment later
            self._capacity = max(self._capacity, load.running)
        self._was_full = is_full
        spare, share = self._ours * self._capacity - there, in_flight / there
        if spare < 0:
            self._set(min(self.value, in_flight + spare * share))
        elif self._is_used(in_flight) and load.waiting < 1 and load.cache_used < CACHE_FULL and self._may_grow():
            if spare >= 1:
                more = (LAST_STEP - 1) * there if math.isinf(spare) else spare
                self._raise(in_flight + more * share)
            elif now - self._others_at >= ALONE_SECONDS or now - self._full_at >= SHARED_SECONDS:
                self._capacity *= PROBE_STEP
        self._hold(self.value)  # should it tell no more

    # Throughput, and then latency

    @property
    def _needed(self) -> float:
        if self._is_climbing:
            return super()._needed
        return max(2 * MIN_ANSWERS if self._is_calibrating else MIN_ANSWERS, self.value)

    def _judge(self) -> None:
        latency = self._seconds / self._work
        if self._is_calibrating:
            self._calibrate(self._in_flight / self._count, latency)
        elif not self._is_climbing:
            self._judge_latency(latency)
        else:
            super()._judge()
            if not self._is_climbing:
                self._is_calibrating, self._best_speed = True, 0.0
            elif self._next < 0:  # it could not grow
                self._hold(self.value)

    def _calibrate(self, in_flight: float, latency: float) -> None:
        """From above the knee down to below it: there the latency is that of requests that do not wait, and the best
        speed times that is the knee.
        """
        self._best_speed = max(self._best_speed, in_flight / latency)
        before = self.value
        self._set(min(before, self._ours * self._best_speed * latency))
        if self.value == before:
            self._hold(before)
        self._begin()

    def _hold(self, most: float) -> None:
        self._is_climbing = self._is_calibrating = False
        self._usual, self._measured = 0.0, 0
        self._set(most)
        self._most = self.value
        self._begin()

    def _judge_latency(self, latency: float) -> None:
        self._begin()
        self._measured += 1
        if not self._usual:
            self._usual = latency
        elif latency > self._usual:
            self._usual += (latency - self._usual) * UP
        elif self.value >= self._most - 1:  # with fewer in flight the engine may be faster
            self._usual += (latency - self._usual) * DOWN
        is_usual = latency <= USUAL * self._usual
        if is_usual and self._measured >= HOLDING:
            self._look_for_more()
        else:
            self._set(self._most if is_usual else self._most * USUAL * self._usual / latency)

    def _look_for_more(self) -> None:
        if self._finds_level:
            self._is_climbing = True
            self._step, self._patience = LAST_STEP, 1
            self._settle(1)
        else:
            self._hold(self._ceiling)
