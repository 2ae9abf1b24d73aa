"""How fast a batch gets on, and how long it will take.

What is known of a running batch is never of this moment: finished shards count from their end on, running ones from
their last heartbeat, and answers come in waves where an engine takes as long for each. So the rate is taken from one
moment at which something came to another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from api.gateway.pending import Pending
from workflows.types import BatchPhase, BatchStatus

REMEMBERED: Final = 10_000
"""Batches of which one API process keeps samples."""
SAMPLES: Final = 64
"""Of one batch; where there are more, every second one goes."""
LATE: Final = 1.5
"""Times what a request takes on average: for so long nothing may come before the rate is lower."""
MIN_SECONDS: Final = 0.2
MEMORY_SECONDS: Final = 5.0
"""At least; running shards tell what they have done a second late."""


class Sample(NamedTuple):
    at: float
    """Unix time at which the last of these requests was done …"""
    done: float
    """… and how many were done by then."""


class Pace(NamedTuple):
    per_second: float
    seconds_left: float


class Paces:
    """Remembers how far batches were, so that the rate is that of the last third of a batch so far: of its time or of
    its requests, whichever is shorter.

    A memory of one process: without it the rate is the average since the requests were begun.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, list[Sample]]] = OrderedDict()
        """The samples since the requests of a batch were begun, or begun again."""

    def of(self, batch_id: str, status: BatchStatus, pending: Sequence[Pending], now: float) -> Pace | None:
        """The pace of a batch, where it has one and it is known yet.

        Args: the ``status`` counts the requests of running shards too; ``pending`` are those; ``now`` is Unix time.
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
        # Of a steady engine all that is in flight comes this long after what was in flight before.
        in_flight, left = sum(item.in_flight for item in pending), status.counts.total - done
        patience, idle = LATE * in_flight / rate, now - last.at
        if idle > patience:
            rate = (last.done - base.done) / (last.at - base.at + idle - patience)
        # Where some take far longer than others, the last ones will too: as long as the oldest of now, about.
        oldest = max((now - item.oldest_at for item in pending if item.in_flight and item.oldest_at), default=0.0)
        straggling = max(0.0, oldest - patience) / (1 if left > in_flight else 2)
        return Pace(rate, max(0.0, left / rate - min(idle, patience)) + straggling)

    def _samples(self, batch_id: str, status: BatchStatus, pending: Sequence[Pending], done: int) -> list[Sample]:
        """With what is known now; where the begin of the requests is not known, the first look is it."""
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
