"""The rate at which a batch progresses, and the estimated time until it is done.

What is known of a running batch always lags behind: finished shards count once they have ended, running shards as of
their last heartbeat, and responses arrive in waves where an engine takes equally long for each. The rate is therefore
measured between two moments at which requests were finished.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from api.gateway.pending import Pending
from workflows.types import BatchPhase, BatchStatus

REMEMBERED: Final = 10_000
SAMPLES: Final = 64
"""Maximum number of samples of one batch. Beyond it, every second sample is dropped."""
LATE: Final = 1.5
"""Multiple of a request's average duration after which a lack of responses lowers the rate."""
MIN_SECONDS: Final = 0.2
MEMORY_SECONDS: Final = 5.0
"""Minimum time over which the rate is measured, if there is that much: running shards report up to a second late."""
MEMORY_REQUESTS: Final = 50
"""Minimum number of requests over which the rate is measured, if there are that many: some may take far longer."""
MEMORY_LOOKS: Final = 50
"""Number of looks over which the age of the oldest request in flight is averaged."""


class Sample(NamedTuple):
    at: float
    """Unix time at which the last of these requests was finished."""
    done: float
    """Number of requests finished by then."""


class Pace(NamedTuple):
    per_second: float
    seconds_left: float


@dataclass
class _Seen:
    """What was seen of a batch since it began, or resumed, sending requests."""

    since: float
    """The Unix time of that."""
    samples: list[Sample]
    looks: int = 0
    oldest: float = 0.0
    """Average age in seconds of the oldest request in flight."""

    def age(self, oldest: float) -> float:
        """Add an age of the oldest request in flight, and return the average."""
        self.looks = min(self.looks + 1, MEMORY_LOOKS)
        self.oldest += (oldest - self.oldest) / self.looks
        return self.oldest


class Paces:
    """Measures the rate over the last third of a batch so far: of its time or of its requests, whichever is shorter.
    A time in which the whole batch was seen to wait does not count, nor does what was done before it.

    The samples are kept in the memory of one process. Without earlier ones, the rate is the average since the batch
    began to send requests.
    """

    def __init__(self) -> None:
        self._batches: OrderedDict[str, _Seen] = OrderedDict()

    def of(self, batch_id: str, status: BatchStatus, pending: Sequence[Pending], now: float) -> Pace | None:
        """Return the pace of a batch, or ``None`` if it sends no requests or its rate is not known yet.

        Args: ``status`` has counts that include running shards; ``pending`` are the activities that have not ended and
            are not counted as finished; ``now`` is Unix time in seconds.
        """
        is_ending = status.cancelling_at is not None or status.phase is not BatchPhase.IN_PROGRESS
        if status.rate_since is None or status.paused_at is not None or is_ending:
            return None
        done = status.counts.completed + status.counts.failed
        seen = self._look(batch_id, status, pending, done, now)
        samples = seen.samples
        begin, last = samples[0], samples[-1]
        if last.done <= begin.done or last.at - begin.at < MIN_SECONDS:
            return None
        third = Sample(last.at - (last.at - begin.at) / 3, last.done - (last.done - begin.done) / 3)
        memory = Sample(last.at - MEMORY_SECONDS, last.done - MEMORY_REQUESTS)
        before = (one for one in reversed(samples) if one.at <= memory.at and one.done <= memory.done)
        base = next((one for one in before if one.at <= third.at or one.done <= third.done), begin)
        rate = (last.done - base.done) / (last.at - base.at)
        # A steady engine answers everything in flight within the average duration: requests in flight / rate.
        in_flight, left = sum(item.in_flight for item in pending), status.counts.total - done
        patience, idle = LATE * in_flight / rate, now - last.at
        if idle > patience:
            rate = (last.done - base.done) / (last.at - base.at + idle - patience)
        # Where some requests take far longer than others, the last ones may too. At any moment, the longest that one in
        # flight will still take is distributed as the longest that one has taken, so the average of that is expected.
        oldest = max((now - item.oldest_at for item in pending if item.in_flight and item.oldest_at), default=0.0)
        straggling = max(0.0, seen.age(oldest) - patience) if left > in_flight else max(0.0, oldest - patience) / 2
        return Pace(rate, max(0.0, left / rate - min(idle, patience)) + straggling)

    def _look(self, batch_id: str, status: BatchStatus, pending: Sequence[Pending], done: int, now: float) -> _Seen:
        """Return what was seen of a batch, with the current sample, which is the first if the count at the start is
        unknown.
        """
        assert status.rate_since is not None
        seen = self._batches.pop(batch_id, None)
        if seen is None or seen.since != status.rate_since:
            begin = [] if status.rate_done is None else [Sample(status.rate_since, status.rate_done)]
            seen = _Seen(status.rate_since, begin)
        samples = seen.samples
        at = max([status.rate_since, status.rate_at or 0, *(item.done_at or 0 for item in pending)])
        if any(item.wait for item in pending) and all(item.wait for item in pending if item.in_flight):
            seen = _Seen(status.rate_since, [Sample(now, done)])
        elif not samples or (done > samples[-1].done and at > samples[-1].at):
            samples.append(Sample(at, done))
        elif done > samples[-1].done:
            samples[-1] = samples[-1]._replace(done=done)
        if len(samples) > SAMPLES:
            samples[1:] = samples[:1:-2][::-1]
        self._batches[batch_id] = seen
        if len(self._batches) > REMEMBERED:
            self._batches.popitem(last=False)
        return seen
