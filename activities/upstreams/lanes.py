"""What is known of an upstream's servers, and of each model on each of them: limits, pauses and failures."""

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
"""Of a longer ``Retry-After``: then one request asks, and where it is refused too, the next after twice as long."""

PROBE_SECONDS: Final = 2.0
"""Between the first two requests that are sent beyond a level while all that is in flight hangs; then twice as long."""
SPARE: Final = 2
"""Requests above a level that was found, for batches that have nothing in flight. An engine of ten seconds whose
requests all began together would let them wait for nearly as long again."""

MAX_MODELS: Final = 100
"""Of which something is remembered while nothing is sent to them; clients may name what they like."""


class Gate:
    """How many requests may be in flight, and when none may be sent."""

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
    def has_room(self) -> bool:
        return self.in_flight < int(self.limit) and self.paused_until <= self._clock()


class ToldToWait:
    """The batches that a model has refused with a long ``Retry-After``.

    They alone wait for that time. Other batches of the model ask for themselves, one request at a time, so that a
    batch that is cancelled leaves no pause behind.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._since = float("-inf")
        self._rounds = 0

    @property
    def is_unanswered(self) -> bool:
        """Whether nothing that was sent since has been answered."""
        return self._rounds > 0

    def add(self, batch_id: str, sent_at: float, now: float, seconds: float) -> None:
        if sent_at >= self._since:  # not of the volley that is known already
            self._rounds = min(self._rounds + 1, 10)
            self._since = now
        until = now + min(seconds, TRUSTED_SECONDS * 2 ** (self._rounds - 1))
        self._until[batch_id] = max(self._until.get(batch_id, until), until)

    def answered(self, sent_at: float) -> None:
        if self._rounds and sent_at >= self._since:
            self._until.clear()
            self._rounds = 0

    def left(self, batch_id: str, now: float) -> float:
        """Seconds that a batch has to wait."""
        return max(0.0, self._until.get(batch_id, now) - now)

    def longest_left(self, now: float) -> float:
        return max(0.0, max(self._until.values(), default=now) - now)


class Refusal(NamedTuple):
    """A 429 or 503."""

    sent: Sent
    batch_id: str
    retry_after: float | None
    """Seconds."""


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
        """Args: ``level`` finds the limit's maximum, where that is not fixed; ``spare`` is how many requests may be in
        flight above it, of batches that have nothing in flight.
        """
        super().__init__(adaptive, clock)
        self.silence = silence
        self._level = level
        self._spare = spare
        self.witnesses = Witnesses()
        self.told_to_wait = ToldToWait()
        self.unreported: list[Refusal] = []
        """Refusals that may be the fault of their requests alone, so that the limit has not heard of them yet."""
        self.was_refused = False
        """Whether the upstream has ever refused more than was in flight."""
        self._of_batch: Counter[str] = Counter()
        self._stragglers = 0
        """Requests that hang while others are answered. A level below their number would let nothing be sent."""
        self._answered_since = float("-inf")
        """When the latest sent of the requests that were answered was sent."""
        self._probe_at = float("-inf")
        self._probe_seconds = PROBE_SECONDS

    def take(self, batch_id: str) -> None:
        """A request of a batch is in flight from now on."""
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

    def has_room_for(self, batch_id: str) -> bool:
        """As :attr:`has_room`; above a level that was found, a little for a batch that has nothing in flight."""
        if self.has_room or not self._spare or batch_id in self._of_batch:
            return self.has_room
        is_held = self.was_refused or self.adaptive.is_cut or self.told_to_wait.is_unanswered
        is_open = not is_held and self.paused_until <= self._clock()
        return is_open and int(self.limit) > self._spare and self.in_flight < int(self.limit) + self._spare

    @property
    def limit(self) -> float:
        return 1.0 if self.told_to_wait.is_unanswered else self.adaptive.limit + self._stragglers

    @property
    def has_room(self) -> bool:
        # What a refusal leaves free is not filled before it is clear what it meant, unless nothing else could tell.
        return super().has_room and (not self.in_flight or self.in_flight + len(self.unreported) < int(self.limit))

    def heed(self, refusal: Refusal) -> float:
        """Heed a ``Retry-After``, if there is one. Returns for how many seconds nothing at all is sent."""
        sent, batch_id, seconds = refusal
        if seconds is None:
            return 0.0
        if seconds > MAX_PAUSE:
            self.told_to_wait.add(batch_id, sent.sent_at, self._clock(), seconds)
        return min(seconds, MAX_PAUSE)

    def pause_for(self, batch_id: str) -> float:
        """Seconds until a request of this batch may be sent."""
        return max(self.pause_left, self.told_to_wait.left(batch_id, self._clock()))

    @property
    def is_waiting(self) -> bool:
        """Whether what is fetched for it is likely to wait."""
        return self.pause_left > 0 or self.told_to_wait.longest_left(self._clock()) > 0

    def done(self, sent: Sent, work: float) -> None:
        """A request was done, and still counts as in flight. Args: ``work`` is what the level goes by."""
        if not self._level:
            return
        self._answered_since = max(self._answered_since, sent.sent_at)
        self._probe_seconds = PROBE_SECONDS
        if self.adaptive.is_back:  # rather than meeting that limit again and again
            self._level.cut(self.adaptive.limit)
            self.adaptive.allow(self._level.value)
        elif not self.adaptive.is_cut:
            if self._level.answered(sent.sent_at, work, max(sent.load + 1, self.in_flight) - self._stragglers):
                self._count_stragglers(self._level)
            self.adaptive.allow(self._level.value)

    def timed_out(self, sent: Sent) -> None:
        """A request waited too long beside others."""
        self.adaptive.timed_out(sent.sent_at)
        if self._level:
            self._level.cut(self.adaptive.limit)
            self.adaptive.allow(self._level.value)

    def observe_load(self, load: EngineLoad | None) -> None:
        """Some time has passed. Args: ``load`` is what the engine tells of its queue, if it does."""
        if not self._level:
            return
        self._count_stragglers(self._level)  # with a level below their number, no answer would have them counted
        if load and not self.adaptive.is_cut:
            self._level.observe_load(load, self.in_flight)
            self.adaptive.allow(self._level.value)

    def _count_stragglers(self, level: InFlightLevel) -> None:
        now = self._clock()
        old = now - level.straggles_after
        hanging = [one.sent_at for one in self.witnesses.in_flight if one.sent_at < old]
        self._stragglers = sum(sent_at < self._answered_since for sent_at in hanging)
        if hanging and len(hanging) == self.in_flight and now >= self._probe_at:
            # Nothing that was sent later is answered either. One more will tell whether it is the engine that hangs.
            self._stragglers = max(self._stragglers, self.in_flight + 1 - int(self.adaptive.limit))
            self._probe_at = now + self._probe_seconds
            self._probe_seconds *= 2


class Replica(Gate):
    """One of an upstream's servers. Its own limit and pause follow from failures to reach it at all."""

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
        """Args: ``finds_level`` is whether each model's limit finds its own level, up to ``maximum``; ``headroom`` is
        the share of the capacity that is left to other clients.
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
        """Of another model; ``None`` where its limit's maximum is fixed."""
        options = (self._maximum, self._clock, self._timeout)
        if self._headroom:
            return HeadroomLevel(*options, headroom=self._headroom, finds_level=self._finds_level)
        return InFlightLevel(*options) if self._finds_level else None

    def _first_of(self, level: InFlightLevel | None) -> float:
        return level.value if level else self._maximum

    @property
    def has_room(self) -> bool:
        return self.in_flight < int(self.adaptive.limit) and self.paused_until <= self._clock()  # models have their own

    @property
    def pause_for_all(self) -> float:
        """Seconds until something may be sent here, for whatever model: two that refuse, and none that answers, are
        taken to speak for all.
        """
        pause = min(lane.pause_left for lane in self.lanes.values()) if len(self.lanes) > 1 else 0.0
        return max(self.pause_left, pause)

    def pause_for(self, model: str, batch_id: str) -> float:
        """Seconds until a request of this batch for this model may be sent here."""
        lane = self.lanes.get(model)
        return max(self.pause_for_all, lane.pause_for(batch_id) if lane else 0.0)

    @property
    def limit(self) -> float:
        lanes = sum(lane.limit for lane in self.lanes.values())
        return min(self.adaptive.limit, lanes or self._first)


class Flight(NamedTuple):
    """Where a request in flight was sent, and when."""

    replica: int
    model: str
    batch_id: str
    lane: Lane
    sent: Sent
