"""Whose fault a failed answer is, told from what other requests got at the same time.

One :class:`Witnesses` stands for one model on one replica of an upstream. It does no input or output and has no clock:
times are passed in. ``docs/failures.md`` states the rules in a table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Final

OUTAGE_FAILURES: Final = 5
"""Requests that fail, with no later one answered, before the failures are taken for an outage while others are still
in flight."""


MAX_SUSPECTS: Final = 1_000
"""Remembered of one model on one replica."""

RECENT_SECONDS: Final = 2.0
"""An answer so long before a request was sent still says that others were answered when it failed: the last request of
a batch may be sent a moment after the answer to the one before it."""


class Outcome(Enum):
    """How a request ended."""

    ANSWERED = "answered"
    """By the model itself: a result, or a refusal that is final."""
    FAILED = "failed"
    """With an error or something that no model says (a 5xx, 401, a proxy's page, a lost connection)."""
    TIMED_OUT = "timed_out"
    """By our own timeout."""
    OVERLOADED = "overloaded"
    """With 429 or 503."""
    UNREACHABLE = "unreachable"
    """Before it was sent: no connection. Never the fault of a request."""
    DROPPED = "dropped"
    """It was we who ended it."""


class Fault(Enum):
    UNDECIDED = "undecided"
    """Requests that can tell are still in flight."""
    REQUEST = "request"
    """A request that was sent later was answered: this failure counts."""
    ALONE = "alone"
    """Others were answered when it began to fail, and now there is none to compare with but a few of its kind. It
    counts if the upstream answers a probe."""
    EVERYBODY = "everybody"
    """An outage or overload, as far as can be told: wait, uncounted."""


@dataclass(slots=True, eq=False)
class Sent:
    """A request in flight."""

    key: Hashable
    sent_at: float
    load: int
    """Other requests for this model in flight when it was sent."""


@dataclass(slots=True, eq=False)
class _Failure:
    sent: Sent
    outcome: Outcome
    ended_at: float
    is_contradicted: bool
    """A later request was answered."""
    others_answered: bool
    """Some other request was answered since it first failed, while it ran, or just before."""
    is_judged: bool = False
    has_company: bool = False
    """Others failed too, with none that was answered later."""


class Witnesses:
    """What the requests for one model on one replica got."""

    def __init__(self) -> None:
        self.in_flight: set[Sent] = set()
        self.is_out = False
        """Nothing that was sent since the failures began has been answered."""
        self._out_since = 0.0
        self._failures: dict[Hashable, _Failure] = {}
        self._suspects: OrderedDict[Hashable, None] = OrderedDict()
        """Requests that began to fail while others were answered, and have been judged since."""
        self._last_sent: Sent | None = None
        self._last_answered: Sent | None = None
        """Of all that were answered, the one that was sent last."""
        self._answered_at = float("-inf")

    def send(self, key: Hashable, now: float) -> Sent:
        sent = Sent(key, now, len(self.in_flight))
        self.in_flight.add(sent)
        self._last_sent = sent
        return sent

    def was_alone(self, sent: Sent) -> bool:
        """Whether this request has had the model for itself, as far as we know."""
        return not sent.load and self._last_sent is sent

    def drop(self, sent: Sent) -> None:
        self.in_flight.discard(sent)

    def answered(self, sent: Sent, now: float) -> None:
        self.in_flight.discard(sent)
        self._answered_at = now
        if self._last_answered is None or sent.sent_at >= self._last_answered.sent_at:
            self._last_answered = sent
        if self.is_out and sent.sent_at >= self._out_since:
            self.is_out = False
        self._suspects.pop(sent.key, None)
        if self._failures:
            self._failures.pop(sent.key, None)
            for failure in self._failures.values():
                failure.others_answered = True
                # In a queue, what was dropped makes room for what is behind it: later answers say nothing of a timeout.
                if failure.outcome is not Outcome.TIMED_OUT and _contradicts(sent, failure):
                    failure.is_contradicted = True

    def failed(self, sent: Sent, outcome: Outcome, now: float) -> None:
        self.in_flight.discard(sent)
        before = self._failures.get(sent.key)
        failure = _Failure(
            sent,
            outcome,
            now,
            is_contradicted=False,
            others_answered=self._answered_at >= sent.sent_at - RECENT_SECONDS
            or sent.key in self._suspects
            or (before is not None and before.others_answered),
        )
        failure.is_contradicted = self._last_answered is not None and _contradicts(self._last_answered, failure)
        self._failures[sent.key] = failure

    def forget(self, key: Hashable) -> None:
        """Its batch has no use for a judgement any more."""
        self._failures.pop(key, None)
        self._suspects.pop(key, None)

    def is_contradicted(self, key: Hashable) -> bool:
        """Whether the last failure of a request was its own: a later one was answered."""
        failure = self._failures.get(key)
        return failure is not None and failure.is_contradicted

    def looks_out(self) -> bool:
        """Whether the failures are so many that this is an outage, though some requests are still in flight.

        A few failures among many that are still in flight may well be bad requests.
        """
        failures = [one for one in self._open_failures() if one.outcome is not Outcome.OVERLOADED]
        if len(failures) < OUTAGE_FAILURES:
            return False
        first = min(one.sent.sent_at for one in failures)
        if any(one.outcome is Outcome.TIMED_OUT for one in failures) and self._answered_at >= first:
            return False  # slow, and not away
        return len(failures) >= sum(one.sent_at > first for one in self.in_flight)

    def begin_outage(self, now: float) -> None:
        if not self.is_out:
            self.is_out = True
            self._out_since = now

    def judge(self, key: Hashable, *, failed_before: bool, more_to_come: bool) -> Fault:
        """Whose fault the last failure of a request is.

        Args:
            key: the request.
            failed_before: whether an earlier failure was found to be its own fault.
            more_to_come: whether requests for this model wait to be sent.
        """
        failure = self._failures.get(key)
        if failure is None:
            return Fault.EVERYBODY
        fault = self._judge(failure, failed_before, more_to_come)
        if fault is Fault.UNDECIDED:
            return fault
        failure.is_judged = True
        if fault is Fault.REQUEST or self.is_out or len(self._failures) > 1:
            del self._failures[key]
            if failure.others_answered and not failure.has_company:
                self._suspects[key] = None
                if len(self._suspects) > MAX_SUSPECTS:
                    self._suspects.popitem(last=False)
        return fault

    def _judge(self, failure: _Failure, failed_before: bool, more_to_come: bool) -> Fault:
        if failure.is_contradicted:
            return Fault.REQUEST
        is_last = not (self.in_flight or more_to_come)
        open_failures = self._open_failures()
        if self.is_out and not (failed_before and is_last and len(open_failures) == 1):
            return Fault.EVERYBODY
        if failure.outcome is Outcome.TIMED_OUT and not self._was_nearly_alone(failure.sent):
            return Fault.EVERYBODY  # it may have waited behind the others
        if not is_last:
            return Fault.UNDECIDED
        if failed_before:
            return Fault.ALONE
        others_fail = any(one is not failure and not one.others_answered for one in self._failures.values())
        # An engine that drains ends what runs and refuses the rest, so two refusals are too many already.
        maximum = 1 if failure.outcome is Outcome.OVERLOADED else OUTAGE_FAILURES - 1
        if others_fail or len(open_failures) > maximum:
            for one in open_failures:
                one.has_company = True
        return Fault.ALONE if failure.others_answered and not failure.has_company else Fault.EVERYBODY

    def _was_nearly_alone(self, sent: Sent) -> bool:
        """Whether it is one of the last few, as far as we know: too few for one to have waited behind the others."""
        return self.was_alone(sent) or (sent.load < OUTAGE_FAILURES - 1 and not self.in_flight)

    def _open_failures(self) -> list[_Failure]:
        return [one for one in self._failures.values() if not (one.is_contradicted or one.is_judged)]


def _contradicts(answered: Sent, failure: _Failure) -> bool:
    """Whether this answer shows that the model answered others when it failed this request."""
    sent = failure.sent
    if failure.outcome is Outcome.TIMED_OUT:
        # Not just any later one: a few may have overtaken it on their way into the engine's queue.
        return answered.sent_at > (sent.sent_at + failure.ended_at) / 2
    if answered.sent_at <= sent.sent_at:
        return False
    # One that was sent when less was in flight says nothing of a limit that this one met.
    return failure.outcome is not Outcome.OVERLOADED or answered.load >= sent.load
