"""Decides whose fault a failed response is, from the responses that other requests received at the same time.

One :class:`Witnesses` object covers one model on one replica of an upstream. It does no I/O and reads no clock: callers
pass in times. ``docs/failures.md`` has the rules in a table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from activities.upstreams.answers import Verdict

OUTAGE_FAILURES: Final = 5
"""Number of failed requests, with no later request answered, from which the failures count as an outage even though
other requests are still in flight."""


MAX_SUSPECTS: Final = 1_000
"""Maximum number of suspects that are remembered for one model on one replica."""

RECENT_SECONDS: Final = 2.0
"""Seconds before a request was sent in which an answer still proves that others were answered when it failed: the last
request of a batch may be sent a moment after the answer to the one before it."""


class Outcome(Enum):
    """How a request ended."""

    ANSWERED = "answered"
    """The model itself answered, with a result or a final refusal."""
    FAILED = "failed"
    """An error, or a response that does not come from a model: a 5xx, a 401, a proxy's page, a lost connection."""
    TIMED_OUT = "timed_out"
    """Our own timeout passed."""
    OVERLOADED = "overloaded"
    """The response was a 429 or 503."""
    UNREACHABLE = "unreachable"
    """There was no connection, so nothing was sent. Never the fault of a request."""
    DROPPED = "dropped"
    """Everbatch itself ended the request."""


OUTCOMES: Final = {
    Verdict.SUCCESS: Outcome.ANSWERED,
    Verdict.FINAL: Outcome.ANSWERED,
    Verdict.RETRY: Outcome.FAILED,
    Verdict.TIMED_OUT: Outcome.TIMED_OUT,
    Verdict.OVERLOADED: Outcome.OVERLOADED,
    Verdict.UNREACHABLE: Outcome.UNREACHABLE,
}
"""The outcome that each verdict on an answer stands for."""


class Fault(Enum):
    """Whose fault a failure is."""

    UNDECIDED = "undecided"
    """Requests whose outcome will decide it are still in flight or waiting."""
    REQUEST = "request"
    """The request's own: a request that was sent later was answered, so this failure counts."""
    ALONE = "alone"
    """Others were answered when the request began to fail, and now at most a few similar failures remain to compare it
    with. It counts if the upstream answers a probe."""
    EVERYBODY = "everybody"
    """Most likely an outage or overload: the request waits, and the failure does not count."""


@dataclass(slots=True, eq=False)
class Sent:
    """A request in flight."""

    key: Hashable
    sent_at: float
    load: int
    """Number of other requests for this model that were in flight when it was sent."""
    answers_before: int = 0
    """Number of answers that other requests had received when it was sent."""
    late: float = 0.0
    """Seconds from its turn until this process began to send it."""


@dataclass(slots=True, eq=False)
class _Failure:
    sent: Sent
    outcome: Outcome
    ended_at: float
    is_contradicted: bool
    """Whether a request that was sent later was answered."""
    others_answered: bool
    """Whether another request was answered since this one first failed, while it ran, or shortly before."""
    was_overtaken: bool
    """Whether so many others were answered while it ran that it must have hung, rather than waited behind them."""
    is_known: bool
    """Whether an earlier failure of this request was its own fault."""
    is_judged: bool = False
    has_company: bool = False
    """Whether other requests failed too, and none that was sent later was answered."""


class Witnesses:
    """The recent outcomes of the requests for one model on one replica."""

    def __init__(self) -> None:
        self.in_flight: set[Sent] = set()
        self.is_out = False
        """Whether there is an outage: no request that was sent since it was noticed has been answered."""
        self._out_since = 0.0
        self._failures: dict[Hashable, _Failure] = {}
        self._suspects: OrderedDict[Hashable, None] = OrderedDict()
        """Requests that began to fail while others were answered, and that have been judged since."""
        self._last_sent: Sent | None = None
        self._last_answered: Sent | None = None
        """The answered request that was sent last."""
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
        """Return whether, as far as this process knows, no other request was in flight during this one."""
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
                # A request that times out in a queue makes room for those behind it, so their answers do not show
                # that it timed out by its own fault.
                elif failure.was_overtaken or failure.is_known:
                    failure.is_contradicted |= sent.sent_at > failure.sent.sent_at

    def failed(self, sent: Sent, outcome: Outcome, now: float, *, failed_before: bool = False) -> None:
        """Record a failure. Args: ``failed_before`` is whether an earlier one was the request's own fault."""
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
        """Discard what is known about a request that needs no judgement any more."""
        self._failures.pop(key, None)
        self._suspects.pop(key, None)
        self._doubtful.discard(key)

    def is_contradicted(self, key: Hashable) -> bool:
        """Return whether a request's last failure was its own fault, because a later request was answered."""
        failure = self._failures.get(key)
        return failure is not None and failure.is_contradicted

    def looks_out(self) -> bool:
        """Return whether there are enough failures for an outage, although some requests are still in flight.

        A few failures, while many requests are still in flight, may well be bad requests.
        """
        failures = [one for one in self._open_failures() if not (one.outcome is Outcome.OVERLOADED or one.is_known)]
        if len(failures) < OUTAGE_FAILURES:
            return False
        first = min(one.sent.sent_at for one in failures)
        if any(one.outcome is Outcome.TIMED_OUT for one in failures) and self._answered_at >= first:
            return False  # the upstream is slow, but not down
        return len(failures) >= sum(one.sent_at > first for one in self.in_flight)

    def begin_outage(self, now: float) -> None:
        if not self.is_out:
            self.is_out = True
            self._out_since = now

    def judge(self, key: Hashable, *, more_to_come: bool) -> Fault:
        """Return whose fault the last failure of a request is.

        Args: ``more_to_come`` is whether other requests for this model are waiting to be sent.
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
        # An engine that drains finishes what it runs and refuses everything else, so two refusals already point to it.
        maximum = 1 if failure.outcome is Outcome.OVERLOADED else OUTAGE_FAILURES - 1
        doubtful = self._doubtful.union(
            one.sent.key for one in open_failures if not (one.was_overtaken and one.outcome is Outcome.TIMED_OUT)
        )
        if others_fail or len(doubtful) > maximum:
            for one in open_failures:
                one.has_company = True
        return Fault.ALONE if failure.others_answered and not failure.has_company else Fault.EVERYBODY

    def _may_have_queued(self, failure: _Failure) -> bool:
        """Return whether the request may have timed out because it waited behind others."""
        sent = failure.sent
        if failure.was_overtaken or (failure.is_known and self._answered_at < sent.sent_at):
            return False
        # If, as far as is known, it is one of the last few, these are too few for it to have waited behind the others.
        return not (self.was_alone(sent) or (sent.load < OUTAGE_FAILURES - 1 and not self.in_flight))

    def _open_failures(self) -> list[_Failure]:
        return [one for one in self._failures.values() if not (one.is_contradicted or one.is_judged)]


def _contradicts(answered: Sent, failure: _Failure) -> bool:
    """Return whether this answer shows that the model answered others while it failed this request."""
    sent = failure.sent
    if failure.outcome is Outcome.TIMED_OUT:
        # A slightly later request proves nothing: it may have overtaken this one on the way into the engine's queue.
        return answered.sent_at > (sent.sent_at + failure.ended_at) / 2
    if answered.sent_at <= sent.sent_at:
        return False
    # A request that was sent with fewer others in flight says nothing about a limit that this one hit.
    return failure.outcome is not Outcome.OVERLOADED or answered.load >= sent.load
