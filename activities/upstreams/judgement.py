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

from activities.upstreams.answers import Verdict

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


OUTCOMES: Final = {
    Verdict.SUCCESS: Outcome.ANSWERED,
    Verdict.FINAL: Outcome.ANSWERED,
    Verdict.RETRY: Outcome.FAILED,
    Verdict.TIMED_OUT: Outcome.TIMED_OUT,
    Verdict.OVERLOADED: Outcome.OVERLOADED,
    Verdict.UNREACHABLE: Outcome.UNREACHABLE,
}
"""What the answers of an engine say of it."""


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
    answers_before: int = 0
    """To other requests, before it was sent."""


@dataclass(slots=True, eq=False)
class _Failure:
    sent: Sent
    outcome: Outcome
    ended_at: float
    is_contradicted: bool
    """A later request was answered."""
    others_answered: bool
    """Some other request was answered since it first failed, while it ran, or just before."""
    was_overtaken: bool
    """So many others were answered while it ran that it cannot have waited behind them: it hung while others ran."""
    is_known: bool
    """An earlier failure of this request was its own fault."""
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
        self._answers = 0
        self._doubtful: set[Hashable] = set()
        """Requests that have timed out since the last answer, perhaps because they waited behind others."""

    def send(self, key: Hashable, now: float) -> Sent:
        sent = Sent(key, now, len(self.in_flight), self._answers)
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
        self._answers += 1
        self._doubtful.clear()
        if self._last_answered is None or sent.sent_at >= self._last_answered.sent_at:
            self._last_answered = sent
        if self.is_out and sent.sent_at >= self._out_since:
            self.is_out = False
        self._suspects.pop(sent.key, None)
        if self._failures:
            self._failures.pop(sent.key, None)
            for failure in self._failures.values():
                failure.others_answered = True
                if failure.outcome is not Outcome.TIMED_OUT:
                    failure.is_contradicted |= _contradicts(sent, failure)
                # In a queue, what was dropped makes room for what is behind it: that says nothing of a timeout.
                elif failure.was_overtaken or failure.is_known:
                    failure.is_contradicted |= sent.sent_at > failure.sent.sent_at

    def failed(self, sent: Sent, outcome: Outcome, now: float, *, failed_before: bool = False) -> None:
        """Args: ``failed_before`` is whether an earlier failure was found to be its own fault."""
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
            was_overtaken=self._answers - sent.answers_before >= 2 * max(sent.load + 1, OUTAGE_FAILURES),
            is_known=failed_before,
        )
        failure.is_contradicted = self._last_answered is not None and _contradicts(self._last_answered, failure)
        self._failures[sent.key] = failure

    def forget(self, key: Hashable) -> None:
        """Its batch has no use for a judgement any more."""
        self._failures.pop(key, None)
        self._suspects.pop(key, None)
        self._doubtful.discard(key)

    def is_contradicted(self, key: Hashable) -> bool:
        """Whether the last failure of a request was its own: a later one was answered."""
        failure = self._failures.get(key)
        return failure is not None and failure.is_contradicted

    def looks_out(self) -> bool:
        """Whether the failures are so many that this is an outage, though some requests are still in flight.

        A few failures among many that are still in flight may well be bad requests.
        """
        failures = [one for one in self._open_failures() if not (one.outcome is Outcome.OVERLOADED or one.is_known)]
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

    def judge(self, key: Hashable, *, more_to_come: bool) -> Fault:
        """Whose fault the last failure of a request is.

        Args:
            key: the request.
            more_to_come: whether requests for this model wait to be sent.
        """
        failure = self._failures.get(key)
        if failure is None:
            return Fault.EVERYBODY
        fault = self._judge(failure, more_to_come)
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

    def _judge(self, failure: _Failure, more_to_come: bool) -> Fault:
        if failure.is_contradicted:
            return Fault.REQUEST
        is_last = not (self.in_flight or more_to_come)
        open_failures = self._open_failures()
        if self.is_out and not (failure.is_known and is_last and len(open_failures) == 1):
            return Fault.EVERYBODY
        if failure.outcome is Outcome.TIMED_OUT and self._may_have_queued(failure):
            self._doubtful.add(failure.sent.key)
            return Fault.EVERYBODY
        if not is_last:
            return Fault.UNDECIDED
        if failure.is_known:
            return Fault.ALONE
        others_fail = any(one is not failure and not one.others_answered for one in self._failures.values())
        # An engine that drains ends what runs and refuses the rest, so two refusals are too many already.
        maximum = 1 if failure.outcome is Outcome.OVERLOADED else OUTAGE_FAILURES - 1
        doubtful = self._doubtful.union(
            one.sent.key for one in open_failures if not (one.was_overtaken and one.outcome is Outcome.TIMED_OUT)
        )
        if others_fail or len(doubtful) > maximum:
            for one in open_failures:
                one.has_company = True
        return Fault.ALONE if failure.others_answered and not failure.has_company else Fault.EVERYBODY

    def _may_have_queued(self, failure: _Failure) -> bool:
        """Whether it may have timed out because it waited behind others."""
        sent = failure.sent
        if failure.was_overtaken or (failure.is_known and self._answered_at < sent.sent_at):
            return False
        # Unless it is one of the last few, as far as we know: too few for one to have waited behind the others.
        return not (self.was_alone(sent) or (sent.load < OUTAGE_FAILURES - 1 and not self.in_flight))

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
