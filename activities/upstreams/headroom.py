"""Finds a level that leaves a share of an upstream's capacity to other clients: people who call the engine directly.

If the engine reports its queue, its capacity is the number of requests that it runs when others begin to wait. All
requests in the engine, from Everbatch and other clients, are kept below ``1 - headroom`` of that, so the next one finds
a free place, and each request of others takes one place of ours. Each worker sees all requests and gives up its share.

If it does not, the capacity is the knee of throughput, which :mod:`activities.upstreams.level` finds. From then on, a
latency that rises with the same number of our requests in flight reveals other clients: the level falls in proportion,
as in TCP Vegas, and recovers with the latency.

Probing for more capacity makes requests wait for a moment. It happens rarely, and seldom while others are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from activities.upstreams.engine_load import EngineLoad
from activities.upstreams.level import CACHE_FULL, LAST_STEP, QUEUE, InFlightLevel

FIRST: Final = 4
"""First level. Until the first report, excess requests wait ahead of the other clients' requests."""
STEP: Final = 1.5
"""Factor between two levels that are compared in the climb from there. If the engine reports its queue, smaller steps
are enough. Large steps harm others: requests above the capacity wait ahead of theirs."""

PROBE_STEP: Final = 1.1
"""Factor by which the assumed capacity is raised with each report of a probe, until requests wait."""
ALONE_SECONDS: Final = 120.0
"""Seconds without requests of others after which more capacity is probed for."""
SHARED_SECONDS: Final = 1800.0
"""Seconds since requests last waited after which it is probed for despite others, who may be our own workers."""

MIN_ANSWERS: Final = 32
"""Minimum number of answers in a measurement of the latency."""
USUAL: Final = 1.3
"""Multiple of the lowest latency that still counts as its normal variation."""
DOWN: Final = 0.5
UP: Final = 0.005
"""Fractions by which the lowest latency moves down or up to a measurement. It rises slowly: requests may have become
longer, but load from other clients must not be taken for that."""
HOLDING: Final = 400
"""Number of measurements after which the knee is searched for again."""


class HeadroomLevel(InFlightLevel):
    """The level for one model on one replica. Its values are whole numbers."""

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
        ceiling: the maximum level; for a fixed limit, what the headroom leaves of it.
        clock: returns the time in seconds.
        timeout: the timeout of a request in seconds.
        headroom: the share of the capacity that is left to others.
        finds_level: whether the level starts low instead of at its ceiling.
        """
        super().__init__(ceiling, clock, timeout)
        self._ours = 1 - headroom
        self._finds_level = finds_level
        self.value = float(min(FIRST, ceiling)) if finds_level else float(ceiling)
        # State of the judgement by the engine's queue
        self._capacity = float("inf")
        self._was_waiting = self._was_full = False
        self._full_at = self._others_at = clock()
        # State of the judgement by throughput, then by latency
        self._step = STEP
        self._is_climbing = finds_level
        self._is_calibrating = False
        self._best_speed = 0.0
        self._most = self.value
        """The level at the usual latency."""
        self._usual = 0.0
        """The usual seconds per unit of work."""
        self._measured = 0

    def _set(self, value: float) -> None:
        self.value = float(max(1, int(min(value, self._ceiling) + 1e-6)))

    def cut(self, value: float) -> None:
        """Lower the level after a refusal or timeout. Args: ``value`` is what the upstream takes from all clients."""
        super().cut(max(1.0, value * self._ours))
        self._capacity = value if math.isinf(self._capacity) else self._capacity
        self._hold(self.value)
        self._measured = HOLDING * 3 // 4  # the cause may have been temporary

    # The engine's queue

    def observe_load(self, load: EngineLoad, in_flight: int) -> None:
        preempted, self._preemptions = load.preemptions > self._preemptions > 0, load.preemptions
        if not in_flight or in_flight > 2 * (load.running + load.waiting):
            return  # the engine does not count our requests
        now = self._reported_at = self._clock()
        there = max(load.running + load.waiting, in_flight)  # some of our requests may be on their way
        lasts, self._was_waiting = self._was_waiting and load.waiting >= 1, load.waiting >= 1
        is_full = preempted or lasts or load.waiting > max(1.0, QUEUE * load.running)
        if is_full:
            self._full_at = now
        if is_full or there - in_flight >= 1:
            self._others_at = now
        if is_full and not self._was_full:
            self._capacity = load.running
        else:  # requests that waited only for their prompt to be read run a moment later
            self._capacity = max(self._capacity, load.running)
        self._was_full = is_full
        spare, share = self._ours * self._capacity - there, in_flight / there
        if spare < 0 and self.value > 1:
            self._set(min(self.value, in_flight + spare * share))
        elif self._is_used(in_flight) and load.waiting < 1 and load.cache_used < CACHE_FULL and self._may_grow():
            if math.isinf(spare):
                self._raise(in_flight + (LAST_STEP - 1) * there * share)
            elif spare >= 1:  # the engine has run that many before, so this does not make requests slow
                self._set(in_flight + spare * share)
                self._raised_at = now
            elif now - self._others_at >= ALONE_SECONDS or now - self._full_at >= SHARED_SECONDS:
                self._capacity *= PROBE_STEP
        self._hold(self.value)  # for when the engine stops reporting

    # Throughput, then latency

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
            elif self._next < 0:  # the level could not grow
                self._hold(self.value)

    def _calibrate(self, in_flight: float, latency: float) -> None:
        """Lower the level from above the knee to below it. Requests do not wait there, so the knee is the best speed
        times the latency measured there.
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
        elif self.value >= self._most - 1:  # with fewer requests in flight, the engine may be faster
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
