"""The state of an upstream's replicas, and of each model on each replica: limits, pauses and failures."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from activities.upstreams.adaptive_limit import MAX_PAUSE, AdaptiveLimit
from activities.upstreams.engine_load import EngineLoad
from activities.upstreams.headroom import HeadroomLevel
from activities.upstreams.judgement import Outcome, Sent, Witnesses
from activities.upstreams.level import FIRST_STEP, InFlightLevel
from activities.upstreams.silence import Silence

TRUSTED_SECONDS: Final = 60.0
"""Seconds of a long ``Retry-After`` that are waited before one request probes, and twice as long after each refusal."""

PROBE_SECONDS: Final = 2.0
"""Seconds between the first two probes above a level while all requests in flight hang; doubled after each probe."""
SPARE: Final = 2
"""Number of requests above a found level for batches with none in flight. If an engine takes ten seconds for a request
and all began together, such a batch would otherwise wait nearly that long."""

MAX_MODELS: Final = 100
"""Number of models from which the state of idle ones is dropped: clients may name any number of models."""


class Gate:
    """The limit of requests in flight, and a pause during which none may be sent."""

    def __init__(self, adaptive: AdaptiveLimit, clock: Callable[[], float]) -> None:
        self.adaptive = adaptive
        self.in_flight: int = 0
        self.paused_until = float("-inf")
        self.wake: asyncio.TimerHandle | None = None
        self._clock = clock

    @property
    def limit(self) -> float:
        return self.adaptive.limit

    @property
    def pause_left(self) -> float:
        return max(0.0, self.paused_until - self._clock())

    @property
    def may_send(self) -> bool:
        return self.in_flight < int(self.limit) and self.paused_until <= self._clock()


class BatchPauses:
    """Pauses of single batches, whose requests for a model were refused with a long ``Retry-After``.

    Only these batches wait for that time. Other batches probe for themselves, one request at a time, so that a
    cancelled batch leaves no pause behind.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._since = float("-inf")
        self._rounds = 0

    @property
    def is_unanswered(self) -> bool:
        """Whether no request sent since the refusal has been answered."""
        return self._rounds > 0

    def add(self, batch_id: str, sent_at: float, now: float, seconds: float) -> None:
        if sent_at >= self._since:  # not sent before an earlier refusal was known
            self._rounds = min(self._rounds + 1, 10)
            self._since = now
        until = now + min(seconds, TRUSTED_SECONDS * 2 ** (self._rounds - 1))
        self._until[batch_id] = max(self._until.get(batch_id, until), until)

    def answered(self, sent_at: float) -> None:
        if self._rounds and sent_at >= self._since:
            self._until.clear()
            self._rounds = 0

    def left(self, batch_id: str, now: float) -> float:
        """Return the seconds that a batch still has to wait."""
        return max(0.0, self._until.get(batch_id, now) - now)

    def longest_left(self, now: float) -> float:
        return max(0.0, max(self._until.values(), default=now) - now)


class Refusal(NamedTuple):
    """A 429 or 503."""

    sent: Sent
    batch_id: str
    retry_after: float | None
    """The ``Retry-After`` in seconds, if any."""


class Lane(Gate):
    """One model on one replica."""

    def __init__(
        self,
        adaptive: AdaptiveLimit,
        clock: Callable[[], float],
        silence: Silence,
        level: InFlightLevel | None = None,
        spare: int = 0,
    ) -> None:
        """Args: ``level`` finds the limit's maximum, if that is not fixed; ``spare`` is the number of requests above
        it that batches with none in flight may send.
        """
        super().__init__(adaptive, clock)
        self.silence = silence
        self._level = level
        self._spare = spare
        self.witnesses = Witnesses()
        self.batch_pauses = BatchPauses()
        self.unreported: list[Refusal] = []
        """Refusals that are not reported to the limit yet, because they may be the fault of their requests."""
        self.was_refused = False
        """Whether the upstream has ever refused a request as overload."""
        self._of_batch: Counter[str] = Counter()
        self._stragglers = 0
        """Number of requests that hang while others are answered. A level below it would let nothing be sent."""
        self._answered_since = float("-inf")
        """When the answered request that was sent last was sent."""
        self._probe_at = float("-inf")
        self._probe_seconds = PROBE_SECONDS

    def take(self, batch_id: str) -> None:
        """Record that a request of a batch is in flight from now on."""
        self.in_flight += 1
        self.silence.sent(self.in_flight)
        self._of_batch[batch_id] += 1

    def leave(self, batch_id: str, sent: Sent, outcome: Outcome) -> None:
        self.in_flight -= 1
        if outcome is not Outcome.DROPPED:
            self.silence.ended(sent.sent_at, is_answered=outcome is Outcome.ANSWERED)
        self._of_batch[batch_id] -= 1
        if not self._of_batch[batch_id]:
            del self._of_batch[batch_id]

    def may_send_for(self, batch_id: str) -> bool:
        """Like :attr:`may_send`, with some more above a found level for a batch with no requests in flight."""
        if self.may_send or not self._spare or batch_id in self._of_batch:
            return self.may_send
        is_held = self.was_refused or self.adaptive.is_cut or self.batch_pauses.is_unanswered
        is_open = not is_held and self.paused_until <= self._clock()
        return is_open and int(self.limit) > self._spare and self.in_flight < int(self.limit) + self._spare

    @property
    def limit(self) -> float:
        return 1.0 if self.batch_pauses.is_unanswered else self.adaptive.limit + self._stragglers

    @property
    def may_send(self) -> bool:
        # The place of a refused request stays free until the refusal is judged, unless no other request is in flight.
        return super().may_send and (not self.in_flight or self.in_flight + len(self.unreported) < int(self.limit))

    def obey(self, refusal: Refusal) -> float:
        """Obey a ``Retry-After``, if there is one. Returns the seconds during which nothing at all is sent."""
        sent, batch_id, seconds = refusal
        if seconds is None:
            return 0.0
        if seconds > MAX_PAUSE:
            self.batch_pauses.add(batch_id, sent.sent_at, self._clock(), seconds)
        return min(seconds, MAX_PAUSE)

    def pause_for(self, batch_id: str) -> float:
        """Return the seconds until a request of this batch may be sent."""
        return max(self.pause_left, self.batch_pauses.left(batch_id, self._clock()))

    @property
    def is_waiting(self) -> bool:
        """Whether requests fetched for this model are likely to wait."""
        return self.pause_left > 0 or self.batch_pauses.longest_left(self._clock()) > 0

    def done(self, sent: Sent, work: float) -> None:
        """Record an answer; the request still counts as in flight. Args: ``work`` is its size in tokens, or one."""
        if not self._level:
            return
        self._answered_since = max(self._answered_since, sent.sent_at)
        self._probe_seconds = PROBE_SECONDS
        if self.adaptive.is_back:  # rather than hit that limit again and again
            self._level.cut(self.adaptive.limit)
            self.adaptive.allow(self._level.value)
        elif not self.adaptive.is_cut:
            in_flight = max(sent.load + 1, self.in_flight) - self._stragglers
            if self._level.answered(sent.sent_at, work, in_flight, sent.late):
                self._count_stragglers(self._level)
            self.adaptive.allow(self._level.value)

    def timed_out(self, sent: Sent) -> None:
        """Record a request that timed out beside others."""
        limit = self.adaptive.limit
        self.adaptive.timed_out(sent.sent_at)
        if self._level and self.adaptive.limit < limit:  # of requests that were sent together, the first one counts
            self._level.cut(self.adaptive.limit)
            self.adaptive.allow(self._level.value)

    def observe_load(self, load: EngineLoad | None) -> None:
        """Called at regular intervals. Args: ``load`` is the engine's report of its queue, if it makes one."""
        if not self._level:
            return
        self._count_stragglers(self._level)  # if the level is below their number, no answer triggers the count
        if load and not self.adaptive.is_cut:
            self._level.observe_load(load, self.in_flight)
            self.adaptive.allow(self._level.value)

    def _count_stragglers(self, level: InFlightLevel) -> None:
        now = self._clock()
        old = now - level.straggles_after
        hanging = [one.sent_at for one in self.witnesses.in_flight if one.sent_at < old]
        self._stragglers = sum(sent_at < self._answered_since for sent_at in hanging)
        if hanging and len(hanging) == self.in_flight and now >= self._probe_at:
            # No later request is answered either. One more request shows whether the engine itself hangs.
            self._stragglers = max(self._stragglers, self.in_flight + 1 - int(self.adaptive.limit))
            self._probe_at = now + self._probe_seconds
            self._probe_seconds *= 2


class Replica(Gate):
    """One replica of an upstream. Its own limit and pause depend only on failures to reach it."""

    def __init__(
        self,
        number: int,
        maximum: int,
        clock: Callable[[], float],
        timeout: float,
        *,
        finds_level: bool = False,
        headroom: float = 0.0,
    ) -> None:
        """Args: ``finds_level`` is whether a level up to ``maximum`` is found for each model; ``headroom`` is the share
        of the capacity that is left to other clients.
        """
        super().__init__(AdaptiveLimit(maximum, clock), clock)
        self.number = number
        self._maximum = maximum
        self._timeout = timeout
        self._finds_level = finds_level
        self._headroom = headroom
        self._first = self._first_of(self._new_level())
        self.lanes: dict[str, Lane] = {}

    def lane(self, model: str) -> Lane:
        lane = self.lanes.get(model)
        if lane is None:
            if len(self.lanes) >= MAX_MODELS:
                self.lanes = {name: one for name, one in self.lanes.items() if one.in_flight or one.is_waiting}
            level = self._new_level()
            cut = FIRST_STEP if level else 2.0
            adaptive = AdaptiveLimit(self._first_of(level), self._clock, self._timeout, cut)
            silence = Silence(self._clock, self._timeout)
            spare = SPARE if level and not self._headroom else 0
            lane = self.lanes[model] = Lane(adaptive, self._clock, silence, level, spare)
        return lane

    def _new_level(self) -> InFlightLevel | None:
        """Return the level for another model, or ``None`` if the maximum is fixed."""
        options = (self._maximum, self._clock, self._timeout)
        if self._headroom:
            return HeadroomLevel(*options, headroom=self._headroom, finds_level=self._finds_level)
        return InFlightLevel(*options) if self._finds_level else None

    def _first_of(self, level: InFlightLevel | None) -> float:
        return level.value if level else self._maximum

    @property
    def may_send(self) -> bool:
        return self.in_flight < int(self.adaptive.limit) and self.paused_until <= self._clock()  # models have their own

    @property
    def pause_for_all(self) -> float:
        """Seconds until a request for any model may be sent. If at least two models are known and all of them are
        paused, models that are not known yet wait too.
        """
        pause = min(lane.pause_left for lane in self.lanes.values()) if len(self.lanes) > 1 else 0.0
        return max(self.pause_left, pause)

    def pause_for(self, model: str, batch_id: str) -> float:
        """Return the seconds until a request of this batch for this model may be sent here."""
        lane = self.lanes.get(model)
        return max(self.pause_for_all, lane.pause_for(batch_id) if lane else 0.0)

    @property
    def limit(self) -> float:
        lanes = sum(lane.limit for lane in self.lanes.values())
        return min(self.adaptive.limit, lanes or self._first)


class Flight(NamedTuple):
    """Where and when a request in flight was sent."""

    replica: int
    model: str
    batch_id: str
    lane: Lane
    sent: Sent
