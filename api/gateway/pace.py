"""The rate at which a batch progresses, and the estimated time until it is done.

What is known of a running batch always lags behind: finished shards count once they have ended, running shards as of
their last heartbeat, and responses arrive in waves where an engine takes equally long for each. The rate is therefore
measured between two moments at which requests were finished.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
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


class Sample(NamedTuple):
    at: float
    """Unix time at which the last of these requests was finished."""
    done: float
    """Number of requests finished by then."""


class Pace(NamedTuple):
    per_second: float
    seconds_left: float


class Paces:
    """Measures the rate over the last third of a batch so far: of its time or of its requests, whichever is shorter.

    The samples are kept in the memory of one process. Without earlier ones, the rate is the average since the batch
    began to send requests.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, list[Sample]]] = OrderedDict()
        """By batch id: the Unix time at which the batch began, or resumed, sending requests, and the samples since."""

    def of(self, batch_id: str, status: BatchStatus, pending: Sequence[Pending], now: float) -> Pace | None:
        """Return the pace of a batch, or ``None`` if it sends no requests or its rate is not known yet.

        Args: ``status`` has counts that include running shards; ``pending`` are the activities that have not ended and
            are not counted as finished; ``now`` is Unix time in seconds.
        """
        is_ending = status.cancelling_at is not None or status.phase is not BatchPhase.IN_PROGRESS
        if status.rate_since is None or status.paused_at is not None or is_ending:
            return None
        done = status.counts.completed + status.counts.failed
        samples = self._samples(batch_id, status, pending, done)
        begin, last = samples[0], samples[-1]
        if last.done <= begin.done or last.at - begin.at < MIN_SECONDS:
            return None
        third = Sample(last.at - (last.at - begin.at) / 3, last.done - (last.done - begin.done) / 3)
        before = (one for one in reversed(samples) if last.at - one.at >= MEMORY_SECONDS)
        base = next((one for one in before if one.at <= third.at or one.done <= third.done), begin)
        rate = (last.done - base.done) / (last.at - base.at)
        # A steady engine answers everything in flight within the average duration: requests in flight / rate.
        in_flight, left = sum(item.in_flight for item in pending), status.counts.total - done
        patience, idle = LATE * in_flight / rate, now - last.at
        if idle > patience:
            rate = (last.done - base.done) / (last.at - base.at + idle - patience)
        # If some requests take far longer than others, expect the last ones to take as long as the oldest in flight.
        oldest = max((now - item.oldest_at for item in pending if item.in_flight and item.oldest_at), default=0.0)
        straggling = max(0.0, oldest - patience) / (1 if left > in_flight else 2)
        return Pace(rate, max(0.0, left / rate - min(idle, patience)) + straggling)

    def _samples(self, batch_id: str, status: BatchStatus, pending: Sequence[Pending], done: int) -> list[Sample]:
        """Return a batch's samples and the current one, which is the first if the count at the start is unknown."""
        assert status.rate_since is not None
        since, samples = self._seen.pop(batch_id, (0.0, list[Sample]()))
        if since != status.rate_since:
            samples = [] if status.rate_done is None else [Sample(status.rate_since, status.rate_done)]
        at = max([status.rate_since, status.rate_at or 0, *(item.done_at or 0 for item in pending)])
        if not samples or (done > samples[-1].done and at > samples[-1].at):
            samples.append(Sample(at, done))
        elif done > samples[-1].done:
            samples[-1] = samples[-1]._replace(done=done)
        if len(samples) > SAMPLES:
            samples[1:] = samples[:1:-2][::-1]
        self._seen[batch_id] = status.rate_since, samples
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return samples
