"""Limits the requests in flight to one upstream, serves batches in turn, and pauses. Each upstream has a limiter.

The worker takes a shard from Temporal only if it can run it. Neither Temporal's fairness nor another worker can
reach shards that wait inside a worker, so as few requests wait here as throughput allows. Everything runs on the
event loop of inference.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from activities.upstreams.answer_rate import AnswerRate
from activities.upstreams.engine_load import EngineLoad
from activities.upstreams.judgement import Fault, Outcome
from activities.upstreams.lanes import Flight, Gate, Refusal, Replica
from activities.upstreams.waiting_requests import WaitingRequests
from workflows.waits import Wait

AHEAD: Final = 0.05
"""Seconds of work that is fetched ahead: about the time to take a shard from Temporal and read its input."""

LOOK_SECONDS: Final = 0.25
"""Seconds between two shards fetched while every known model is paused: they may be for another model."""


class Limiter:
    """Counts requests in flight, serves batches in turn, and adapts to the capacity of the upstream.

    An upstream has one or more replicas. Each replica has a limit and a pause for each model, so that a model that
    refuses requests does not delay others, and a limit and pause of its own for when it cannot be reached. A request
    goes to the least busy replica that is not paused for its model.
    """

    def __init__(
        self,
        maximum: int,
        clock: Callable[[], float] = time.monotonic,
        replicas: int = 1,
        timeout: float = float("inf"),
        *,
        finds_level: bool = False,
        headroom: float = 0.0,
    ) -> None:
        """Args: ``maximum`` is the maximum limit of each replica; ``timeout`` is the timeout of a request in seconds;
        ``finds_level`` is whether the limit starts low and finds the upstream's best level; ``headroom`` is the share
        of the upstream's capacity that is left to its other clients.
        """
        self.maximum = maximum * replicas
        self.in_flight = 0
        self.waiting = 0
        self.draining = False
        self.wait: Wait | None = None
        """The reason for the last pause."""
        self._blocked = 0
        self._drained_at = float("inf")
        self._clock = clock
        self._replicas = [
            Replica(number, maximum, clock, timeout, finds_level=finds_level, headroom=headroom)
            for number in range(replicas)
        ]
        self._batches: dict[str, deque[WaitingRequests]] = {}
        self._turns: deque[str] = deque()
        self._waiting_for: Counter[str] = Counter()
        self._shards: dict[WaitingRequests, Callable[[], None]] = {}
        self._judging: set[asyncio.Future[None]] = set()
        self._look_at = float("-inf")
        self._rate = AnswerRate(clock)
        self.on_change: Callable[[], None] = lambda: None
        """Called when there may be capacity for more requests."""
        self.on_end: Callable[[Flight, Outcome, Wait | None], None] = lambda flight, outcome, wait: None
        """Called when a request has ended, with what went wrong, if anything."""

    # Serving requests in turn

    def add(self, queue: WaitingRequests, on_pause: Callable[[], None]) -> None:
        """Queue requests. Args: ``on_pause`` is called when no more of them should be sent for now."""
        self._shards[queue] = on_pause
        if self._is_paused(queue.model, queue.batch_id):
            self._look_later()
            on_pause()
            return
        if queue.turn not in self._batches:
            self._batches[queue.turn] = deque()
            self._turns.append(queue.turn)
        self._batches[queue.turn].append(queue)
        self._count_waiting(queue.model, len(queue.pending))
        self._dispatch()

    def withdraw(self, queue: WaitingRequests) -> None:
        """Remove waiting requests from the queue. Requests in flight stay."""
        queues = self._batches.get(queue.turn)
        if queues and queue in queues:
            queues.remove(queue)
            self._count_waiting(queue.model, -len(queue.pending))
            if not queues:
                self._forget(queue.turn)
        queue.pending.clear()
        self.on_change()

    def leave(self, queue: WaitingRequests) -> None:
        self._shards.pop(queue, None)

    def began(self, flight: Flight) -> None:
        """Record that the process begins to send a request, after the event loop has come to it."""
        flight.sent.late = self._clock() - flight.sent.sent_at

    def finished(
        self,
        flight: Flight,
        outcome: Outcome,
        retry_after: float | None = None,
        wait: Wait | None = None,
        *,
        failed_before: bool = False,
        work: float = 0.0,
    ) -> None:
        """Record that a request is no longer in flight.

        Args:
            flight: where it was sent.
            outcome: how it ended.
            retry_after: seconds that the upstream asked for.
            wait: what went wrong, as the reason of a wait.
            failed_before: whether an earlier failure of this request was its own fault.
            work: the size of the answer in tokens, one if they are not counted, zero if there is no answer.
        """
        replica, lane, sent = self._replicas[flight.replica], flight.lane, flight.sent
        now = self._clock()
        if work:
            lane.done(sent, work)
        self.in_flight -= 1
        replica.in_flight -= 1
        lane.leave(flight.batch_id, sent, outcome)
        self._rate.count()
        if outcome is Outcome.ANSWERED:
            lane.witnesses.answered(sent, now)
            lane.adaptive.answered(sent.sent_at)
            lane.batch_pauses.answered(sent.sent_at)
            if replica.adaptive.limit < replica.adaptive.maximum:
                replica.adaptive.answered(sent.sent_at)
            lane.unreported = [one for one in lane.unreported if not lane.witnesses.is_contradicted(one.sent.key)]
        elif outcome in (Outcome.UNREACHABLE, Outcome.DROPPED):
            lane.witnesses.drop(sent)
            if outcome is Outcome.UNREACHABLE:
                self.wait = wait
                self._pause(replica, replica.adaptive.unreachable(sent.sent_at))
        else:
            lane.witnesses.failed(sent, outcome, now, failed_before=failed_before)
            if not failed_before:
                self._adapt(flight, outcome, retry_after, wait)
        self.on_end(flight, outcome, wait)
        self._dispatch()
        self._judge_again()
        self.on_change()

    def observe_load(self, replica: int, load: EngineLoad | None) -> None:
        """Called at regular intervals. Args: ``load`` is the replica's load by all its clients, if it reports it."""
        for lane in self._replicas[replica].lanes.values():
            lane.observe_load(load)
        self._dispatch()
        self.on_change()

    def in_flight_at(self, replica: int) -> int:
        return self._replicas[replica].in_flight

    async def fault(self, flight: Flight, outcome: Outcome, *, failed_before: bool) -> Fault:
        """Return whose fault the failure of a request was, once the outcomes of other requests decide it.

        Args: see :meth:`finished`, which must be called first.
        """
        lane, model, key = flight.lane, flight.model, flight.sent.key
        while True:
            more = self._waiting_for[model] > 0 and not self._is_paused(model)
            fault = lane.witnesses.judge(key, more_to_come=more)
            if fault is not Fault.UNDECIDED:
                break
            if self.draining:
                lane.witnesses.forget(key)
                return Fault.EVERYBODY
            future = asyncio.get_running_loop().create_future()
            self._judging.add(future)
            try:
                await future
            except asyncio.CancelledError:
                lane.witnesses.forget(key)
                raise
            finally:
                self._judging.discard(future)
        if fault is Fault.EVERYBODY and not failed_before:
            self._report(flight, may_be_out=outcome is not Outcome.TIMED_OUT or lane.witnesses.was_alone(flight.sent))
        lane.unreported = [one for one in lane.unreported if one.sent is not flight.sent]
        return fault

    @property
    def limit(self) -> float:
        """Maximum number of requests in flight that the upstream currently accepts. A replica that is down counts as
        one, for the request that probes it.
        """
        return sum(replica.limit for replica in self._replicas)

    @property
    def pause_left(self) -> float:
        """Seconds until a request may be sent again, for any model."""
        return min(replica.pause_for_all for replica in self._replicas)

    def pause_for(self, model: str, batch_id: str = "") -> float:
        """Return the seconds until a request of this batch for this model may be sent again."""
        return min(replica.pause_for(model, batch_id) for replica in self._replicas)

    @property
    def is_paused(self) -> bool:
        return self.draining or self._blocked > 0 or self.pause_left > 0

    def _is_paused(self, model: str, batch_id: str = "") -> bool:
        return self.draining or self._blocked > 0 or self.pause_for(model, batch_id) > 0

    @property
    def drain_is_over(self) -> bool:
        return self.draining and self._clock() >= self._drained_at

    def block(self) -> None:
        """Send nothing until :meth:`unblock`, because answers cannot be stored. Calls nest."""
        self._blocked += 1
        self._announce_pause()

    def unblock(self) -> None:
        self._blocked -= 1
        self.on_change()

    def drain(self, seconds: float) -> None:
        """Send nothing more, because the process is stopping. Requests in flight have ``seconds`` to end."""
        self.draining = True
        self._drained_at = self._clock() + seconds
        self._announce_pause()

    def may_fetch(self, expected: int) -> bool:
        """Return whether to fetch more requests if ``expected`` requests are already being fetched."""
        if self.is_paused:
            return False
        # Requests that hang at a replica that is down leave the capacity of the others alone.
        here = self._reachable
        if _all_paused(here):
            return not expected and self._clock() >= self._look_at
        ahead = max(self._rate.per_second * AHEAD, 1.0)
        return self.waiting + expected < ahead + sum(replica.limit - replica.in_flight for replica in here)

    @property
    def is_all_paused(self) -> bool:
        """Whether every known model is paused, so that only requests for another model can be sent."""
        return _all_paused(self._reachable)

    @property
    def _reachable(self) -> list[Replica]:
        return [replica for replica in self._replicas if not replica.pause_for_all]

    def _dispatch(self) -> None:
        full: set[tuple[str, str]] = set()  # pairs of model and batch that may not send more
        while self.waiting and not (self.draining or self._blocked):
            for turn in self._turns:
                if self._send_one(turn, full):
                    break
            else:
                return

    def _send_one(self, turn: str, full: set[tuple[str, str]]) -> bool:
        queues = self._batches[turn]
        for queue in queues:
            if queue.lane in full:
                continue
            replica = self._least_busy(queue.model, queue.batch_id)
            if replica is None:
                full.add(queue.lane)
                continue
            self._turns.remove(turn)
            self._turns.append(turn)
            request = queue.pending.popleft()
            if not queue.pending:
                queues.remove(queue)
                if not queues:
                    self._forget(turn)
            self._count_waiting(queue.model, -1)
            lane = replica.lane(queue.model)
            self.in_flight += 1
            replica.in_flight += 1
            lane.take(queue.batch_id)
            sent = lane.witnesses.send((queue.batch_id, request), self._clock())
            queue.start(request, Flight(replica.number, queue.model, queue.batch_id, lane, sent))
            return True
        return False

    def _least_busy(self, model: str, batch_id: str) -> Replica | None:
        free = [
            replica
            for replica in self._replicas
            if replica.may_send
            and not replica.pause_for(model, batch_id)
            and replica.lane(model).may_send_for(batch_id)
        ]
        return min(free, key=lambda replica: replica.in_flight) if free else None

    def _count_waiting(self, model: str, change: int) -> None:
        self.waiting += change
        self._waiting_for[model] += change
        if not self._waiting_for[model]:
            del self._waiting_for[model]

    def _forget(self, turn: str) -> None:
        del self._batches[turn]
        self._turns.remove(turn)

    # Adapting

    def _adapt(self, flight: Flight, outcome: Outcome, retry_after: float | None, wait: Wait | None) -> None:
        """Adapt the model's limit to a failure, unless the failure is already known to be the request's own fault."""
        lane, sent = flight.lane, flight.sent
        if lane.witnesses.is_contradicted(sent.key):
            return
        self.wait = wait
        if outcome is Outcome.TIMED_OUT and not (lane.witnesses.was_alone(sent) or lane.witnesses.looks_out()):
            lane.timed_out(sent)
        elif outcome is Outcome.OVERLOADED:
            lane.unreported.append(Refusal(sent, flight.batch_id, retry_after))
            if len(lane.unreported) >= max(2, int(lane.adaptive.limit / 32)):
                self._report(flight, may_be_out=False)
        elif lane.witnesses.is_out or lane.witnesses.looks_out():
            self._begin_outage(flight, retry_after)

    def _report(self, flight: Flight, *, may_be_out: bool) -> None:
        """Adapt the limit to failures that are not the fault of their requests."""
        lane = flight.lane
        reported, lane.unreported = lane.unreported, []
        lane.was_refused |= bool(reported)
        for refusal in reported:
            seconds = lane.adaptive.overloaded(
                refusal.sent.sent_at, lane.in_flight, has_retry_after=refusal.retry_after is not None
            )
            if seconds := max(seconds, lane.obey(refusal)):
                lane.witnesses.begin_outage(self._clock())
                self._pause(lane, seconds)
        if may_be_out and not (reported or lane.in_flight or lane.pause_left):
            self._begin_outage(flight, None)

    def _begin_outage(self, flight: Flight, retry_after: float | None) -> None:
        lane = flight.lane
        lane.witnesses.begin_outage(self._clock())
        seconds = lane.adaptive.unreachable(flight.sent.sent_at)
        self._pause(lane, max(seconds, lane.obey(Refusal(flight.sent, flight.batch_id, retry_after))))

    def _pause(self, gate: Gate, seconds: float) -> None:
        if not seconds:
            return
        gate.paused_until = max(gate.paused_until, self._clock() + seconds)
        if gate.wake:
            gate.wake.cancel()
        # Slightly late rather than early: the pause must be over by the clock when this runs.
        gate.wake = asyncio.get_running_loop().call_later(gate.pause_left + 0.001, self._pause_is_over)
        self._look_later()
        self._announce_pause()

    def _look_later(self) -> None:
        """Fetch nothing for a moment: the next requests are likely to be for a paused model."""
        self._look_at = self._clock() + LOOK_SECONDS
        asyncio.get_running_loop().call_later(LOOK_SECONDS + 0.001, lambda: self.on_change())

    def _pause_is_over(self) -> None:
        self._dispatch()  # requests may wait here while other replicas answer
        self.on_change()

    def _announce_pause(self) -> None:
        """Notify all shards that have to wait."""
        for queue, on_pause in list(self._shards.items()):
            if self._is_paused(queue.model, queue.batch_id):
                on_pause()
        self._judge_again()

    def _judge_again(self) -> None:
        for future in self._judging:
            if not future.done():
                future.set_result(None)


def _all_paused(replicas: list[Replica]) -> bool:
    return all(one.lanes and all(lane.is_waiting for lane in one.lanes.values()) for one in replicas)
