"""Finds the level, the best number of requests in flight to an upstream: just above the knee of its throughput.

If the engine reports its queue, the queue decides. Each worker sees the queue that all workers cause, so several
workers share an engine without adding up their levels.

If it does not, throughput decides. Throughput is derived with Little's law, as the requests in flight divided by the
seconds that a unit of work took. A level is compared with one above or below it: as long as more requests in flight
bring more throughput, the level grows, in large steps at first. Once they do not, the knee is the lower level times the
gain in throughput, which BBR calls the bandwidth-delay product (Cardwell et al., "BBR: Congestion-Based Congestion
Control", ACM Queue 14(5), 2016). From then on, the level is tested in both directions now and then. These rules belong
to the family of gradient limits: TCP Vegas, and ``VegasLimit`` and ``Gradient2Limit`` of Netflix's concurrency-limits
(https://github.com/Netflix/concurrency-limits). Those keep the latency near that of an idle server, which suits
interactive use. An engine that batches takes longer for each request the more requests it has, but completes more in
total; so the criterion here is the gain in throughput.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from activities.upstreams.engine_load import EngineLoad

START: Final = 16
FLOOR: Final = 2.0
"""Minimum level: one request that the engine runs, and the next one, so that the engine never idles between them."""

FULL: Final = 0.8
"""Fraction of the level that must be in flight: an answer under a smaller load says nothing about the level."""

MARGIN: Final = 1.15
"""The level as a multiple of the knee."""
GROWING: Final = 0.15
"""Fraction of a rise in requests in flight (both as logarithms) that must appear as a rise in throughput; otherwise the
level is above the knee."""
CLIMBING: Final = 0.4
"""The same fraction during the climb from the start, whose measurements have few answers, and while requests wait for
this process's event loop."""
LATE_SECONDS: Final = 0.01
"""Seconds that requests wait for this process's event loop from which they count as queued in it rather than in the
engine. Everything else in the process waits as long for each of its steps."""
LATE_SHARE: Final = 0.05
"""The least share of the usual latency that this wait must have: of slow requests that are answered all at once, the
next ones wait for each other without the process being busy."""
FIRST_STEP: Final = 3.0
MAX_STEP: Final = 1.5
LAST_STEP: Final = 1.25
"""Factors between two compared levels: ``FIRST_STEP`` in the climb, then from ``LAST_STEP`` to ``MAX_STEP``."""
MAX_PATIENCE: Final = 16
"""Maximum number of measurements between two tests of a level that has proved right."""
MIN_ANSWERS_IN_CLIMB: Final = 12
MIN_ANSWERS: Final = 128
"""Minimum number of answers in a measurement."""

STRAGGLES: Final = 12.0
"""Multiple of the usual latency after which a request in flight counts as a straggler."""

QUEUE: Final = 0.1
"""Desired length of the engine's queue, as a fraction of the requests that it runs."""
REPORT_SECONDS: Final = 3.0
"""Seconds for which the engine's last report of its queue decides alone."""
SEEN_SECONDS: Final = 0.5
"""Seconds between two rises: until then, the requests of the last rise may not have reached the engine."""
CACHE_FULL: Final = 0.95
"""Fraction of the engine's KV cache in use from which the level does not rise."""
PREEMPTED: Final = 0.9
"""Fraction of the running requests that may be in flight after the engine has preempted some of them."""
HELD_SECONDS: Final = 30.0
"""Seconds after a preemption or a cut during which the engine's queue does not raise the level."""


class _Measured(NamedTuple):
    in_flight: float
    speed: float
    """Units of work per second."""


class InFlightLevel:
    """The level for one model on one replica. All times are those of the clock that is passed in."""

    def __init__(self, ceiling: int, clock: Callable[[], float], timeout: float = float("inf")) -> None:
        """Args: ``ceiling`` is the maximum level; ``timeout`` is the timeout of a request in seconds."""
        self.value = float(min(START, ceiling))
        self._ceiling = float(ceiling)
        self._clock = clock
        self._timeout = timeout
        self._latency = self._late = 0.0
        # State of the judgement by throughput
        self._reference: _Measured | None = None
        self._before = self.value
        self._step = FIRST_STEP
        self._direction, self._next = 0, 1  # up (1) or down (-1): of the level that is being tried, and of the next
        self._holding = self._patience = 1
        self._is_climbing = True  # until the first knee is found
        self._has_grown = False
        self._begin()
        # State of the judgement by the engine's queue
        self._reported_at = self._held_until = self._raised_at = float("-inf")
        self._growth = FIRST_STEP
        self._preemptions = 0.0

    def answered(self, sent_at: float, work: float, in_flight: int, late: float = 0.0) -> bool:
        """Record an answered request. Returns whether the level was judged again.

        Args:
            sent_at: when the request was sent.
            work: its size in tokens, or 1 if tokens are not counted.
            in_flight: requests in flight when it was sent or answered, including itself but no stragglers.
            late: the seconds for which this process kept it waiting before sending it.
        """
        now = self._clock()
        seconds = max(now - sent_at, 1e-6)
        self._latency += (seconds - self._latency) * 0.1 if self._latency else seconds
        self._late += (late - self._late) * 0.02
        if now - self._reported_at < REPORT_SECONDS:
            self._begin()
        elif sent_at >= self._since and (self._is_used(in_flight) or self._is_late):
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
        """Seconds in flight after which a request is a straggler, which the level does not count."""
        return STRAGGLES * self._latency if self._latency else float("inf")

    def observe_load(self, load: EngineLoad, in_flight: int) -> None:
        """Adjust the level to the load that the engine reports.

        Args:
            load: the engine's load from all clients and models together.
            in_flight: this process's requests in flight for this model.
        """
        there = load.running + load.waiting
        preempted, self._preemptions = load.preemptions > self._preemptions > 0, load.preemptions
        if not in_flight or in_flight > 2 * there:
            return  # the engine's figures do not seem to include our requests
        self._reported_at = self._clock()
        self._reference, self._direction = None, 0
        share = min(1.0, in_flight / there)
        spare = max(1.0, QUEUE * load.running) - load.waiting
        if preempted:
            self._held_until = self._clock() + HELD_SECONDS
            self._set(PREEMPTED * load.running * share)
        elif spare < 0:
            self._growth = LAST_STEP
            self._set(min(self.value, in_flight + spare * share))
        elif self._is_used(in_flight) and load.cache_used < CACHE_FULL and self._may_grow():
            if load.waiting:
                self._raise(in_flight + spare * share)
            else:
                self._raise(self.value * self._growth)
                self._growth = min(FIRST_STEP, self._growth * LAST_STEP)

    def _is_used(self, in_flight: int) -> bool:
        """Return whether so many in flight tell something about the level. Only whole requests can be in flight."""
        return in_flight >= FULL * math.floor(self.value)

    @property
    def _is_late(self) -> bool:
        """Whether this process is the bottleneck. It may then be too slow to ever fill the level."""
        return self._late > max(LATE_SECONDS, LATE_SHARE * self._latency)

    def _may_grow(self) -> bool:
        now = self._clock()
        return now >= self._held_until and now - self._raised_at >= SEEN_SECONDS

    def _raise(self, value: float) -> None:
        """Raise the level, unless the expected latency would come near the timeout."""
        if value > self.value and self._latency * value / self.value < self._timeout / 2:
            self._set(max(value, self.value + 1))
            self._raised_at = self._clock()

    def _set(self, value: float) -> None:
        self.value = min(max(value, min(FLOOR, self.value)), self._ceiling)

    def cut(self, value: float) -> None:
        """Lower the level because the upstream refused requests or let them wait for too long.

        Higher levels are tried again after a while.
        """
        self.value = min(self.value, value)
        self._is_climbing = False
        self._step = LAST_STEP
        self._patience = min(MAX_PATIENCE, 2 * self._patience)
        self._growth = LAST_STEP
        self._held_until = self._clock() + HELD_SECONDS
        self._settle(1)
        self._begin()

    # Judgement by throughput

    def _begin(self) -> None:
        self._since = self._clock()
        self._count = 0
        self._work = self._seconds = self._in_flight = 0.0

    @property
    def _needed(self) -> float:
        if self._is_climbing:
            return max(MIN_ANSWERS_IN_CLIMB, self.value / 2)  # about as many as the last step added
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
        """Compare the level that is being tried with the one before it, and keep it or go back."""
        low, high = sorted((reference, here))
        gain = high.speed / low.speed
        wanted = CLIMBING if self._is_climbing or self._is_late else GROWING
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
            margin = 1.0 if self._is_late else MARGIN
            self._set(min(margin * low.in_flight, self._before) if is_right else self._before)
        self._settle(-1 if is_right else -self._direction)

    def _settle(self, following: int) -> None:
        self._reference, self._direction, self._next = None, 0, following
        self._holding = self._patience


def _mean(one: _Measured, other: _Measured) -> _Measured:
    return _Measured((one.in_flight + other.in_flight) / 2, (one.speed + other.speed) / 2)
