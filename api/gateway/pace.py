"""How fast a batch gets on, and how long it will take.

What is known of a running batch is never of this moment: finished shards count from their end on, running ones from
their last heartbeat, and answers come in waves where an engine takes as long for each. So the rate is taken from one
moment at which something came to another, and what running shards have not told yet is added.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from api.gateway.pending import Pending
from workflows.types import BatchStatus

REMEMBERED: Final = 10_000
"""Batches of which one API process keeps samples."""
SAMPLES: Final = 64
"""Of one batch; where there are more, every second one goes."""
LATE: Final = 1.5
"""Times what a request takes on average: for so long nothing may come before the rate is lower."""
MIN_SECONDS: Final = 0.2


class Sample(NamedTuple):
    at: float
    """Unix time at which the last of these requests was done …"""
    done: float
    """… and how many were done by then."""


class Pace(NamedTuple):
    per_second: float
    seconds_left: float


class Paces:
    """Remembers how far batches were, so that the rate is that of the newer half of what is done.

    A memory of one process: without it the rate is taken from the begin of the batch.
    """

    def __init__(self) -> None:
        self._samples: OrderedDict[str, list[Sample]] = OrderedDict()

    def of(self, batch_id: str, status: BatchStatus, pending: Sequence[Pending], left: int, now: float) -> Pace | None:
        """The pace of a batch, where it is known yet.

        Args: ``pending`` are its running shards that the status does not count; ``left`` is how many requests are not
        done; ``now`` is Unix time.
        """
        if status.rate_since is None:
            return None
        begin = Sample(status.rate_since, status.rate_done)
        last = _last(status, pending, begin)
        if last.done <= begin.done or last.at - begin.at < MIN_SECONDS:
            return None
        samples = self._samples.pop(batch_id, [])
        half = begin.done + (last.done - begin.done) / 2
        recent = (sample for sample in reversed(samples) if sample.at >= begin.at)  # else from before a pause
        base = next((sample for sample in recent if sample.done <= half), begin)
        if last.done > (samples[-1] if samples else begin).done:
            samples.append(last)
        self._samples[batch_id] = samples[-1::-2][::-1] if len(samples) > SAMPLES else samples
        if len(self._samples) > REMEMBERED:
            self._samples.popitem(last=False)
        busy = last.at - base.at - _waited(status, base.at, last.at)
        rate = (last.done - base.done) / max(busy, MIN_SECONDS)
        # Of a steady engine all that is in flight comes this long after what was in flight before.
        in_flight = sum(item.in_flight for item in pending)
        patience, idle = LATE * in_flight / rate, now - last.at
        if idle > patience:
            rate = (last.done - base.done) / max(busy + idle - patience, MIN_SECONDS)
        # Where some take far longer than others, the last ones will too: as long as the oldest of now, about.
        oldest = max((now - item.oldest_at for item in pending if item.in_flight and item.oldest_at), default=0.0)
        straggling = max(0.0, oldest - patience) / (1 if left > in_flight else 2)
        return Pace(rate, max(0.0, left / rate - min(idle, patience)) + straggling)


def _last(status: BatchStatus, pending: Sequence[Pending], begin: Sample) -> Sample:
    """When something was done last, and how much was done by then."""
    running = [item for item in pending if item.shard is not None and item.done_at is not None and item.heard_at]
    done = status.counts.completed + status.counts.failed + sum(item.completed + item.failed for item in running)
    at = max([status.rate_at or begin.at, *(item.done_at or 0 for item in running)])
    untold = sum(
        (item.completed + item.failed) / max(item.done_at - item.started_at, MIN_SECONDS) * (at - item.heard_at)
        for item in running
        if item.done_at and item.heard_at and item.started_at and item.heard_at < at
    )
    return Sample(at, done + untold)


def _waited(status: BatchStatus, since: float, until: float) -> float:
    """Seconds of this time in which the batch stood still, as far as it is known."""
    waits = (wait for wait in status.history.waits if wait.times == 1)
    return sum(max(0.0, min(until, wait.ended or until) - max(since, wait.began)) for wait in waits)
