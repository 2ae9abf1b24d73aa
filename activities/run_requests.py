"""The activity that runs a shard: sends each unfinished request once and commits the answers as they arrive."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Final, NamedTuple, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import catalog
from activities.batch_plan import BatchPlan, load_plan
from activities.inference import Answer, InferenceClient, Verdict
from activities.jsonl import parse_line, read_lines
from activities.limiter import Limiter, Queue, RoomForRequests, Signal
from activities.metrics import RequestMetrics
from activities.output_lines import OutputLines
from activities.request_rules import model_of
from activities.results import ShardLog
from activities.shard_heartbeat import BEAT_SECONDS, ShardHeartbeat
from activities.storage import ObjectNotFound, ObjectStore, StoreError
from workflows.contract import RUN_REQUESTS, RunRequestsStub
from workflows.types import RunRequestsInput, ShardProgress, ShardResult

T = TypeVar("T")

FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 30.0
"""Bounds in seconds of the growing wait before a failed request is tried again."""

STORE_RETRY_SECONDS: Final = 1.0

_SIGNALS: Final = {
    Verdict.SUCCESS: Signal.ANSWERED,
    Verdict.FINAL: Signal.ANSWERED,
    Verdict.RETRY: Signal.UNCLEAR,
    Verdict.OVERLOADED: Signal.OVERLOADED,
    Verdict.UNREACHABLE: Signal.UNREACHABLE,
}


class _Request(NamedTuple):
    custom_id: bytes
    body: bytes


class RunRequests(RunRequestsStub):
    def __init__(
        self,
        store: ObjectStore,
        client: InferenceClient,
        limiter: Limiter,
        room: RoomForRequests,
        commit_interval: float,
        metrics: RequestMetrics,
    ) -> None:
        """Args: ``commit_interval`` is how long an answer may wait for others, in seconds."""
        self._store = store
        self._client = client
        self._limiter = limiter
        self._room = room
        self._commit_interval = commit_interval
        self._metrics = metrics

    @activity.defn(name=RUN_REQUESTS)
    async def run_requests(self, task: RunRequestsInput) -> ShardResult:
        log = ShardLog(
            self._store, task.tenant, task.batch_id, task.index, catalog.attempt_name(activity.info().attempt)
        )
        run = _ShardRun(task, log, self._client, self._limiter, self._commit_interval, self._metrics)
        try:
            if result := await log.load():
                return result
            requests = await asyncio.to_thread(self._read, task, log)
            with self._room.running(task.shard.requests):
                return await run.run(requests)
        except StoreError as error:
            # Nothing is lost: answers wait in memory as long as their attempt lives.
            raise ApplicationError(
                str(error), type="StoreError", next_retry_delay=timedelta(seconds=STORE_RETRY_SECONDS)
            ) from error
        finally:
            run.heartbeat.stop()

    def _read(self, task: RunRequestsInput, log: ShardLog) -> dict[int, _Request]:
        """The requests of the shard that have no committed answer."""
        shard = task.shard
        chunks = self._store.stream(catalog.input_key(task.tenant, task.batch_id), shard.offset, shard.length)
        plan: BatchPlan | None = None
        if task.plan and shard.requests > 1:  # of one request, the shard is that line alone
            plan = load_plan(self._store.get(catalog.plan_key(task.tenant, task.batch_id, task.plan)))
        requests: dict[int, _Request] = {}
        for line in read_lines(chunks, first_line=shard.first_line):
            if line.data and not log.has(line.number):
                parsed = parse_line(line.data)
                if plan and plan.upstream(model_of(parsed.body)) != shard.upstream:
                    continue
                requests[line.number] = _Request(bytes(parsed.custom_id), bytes(parsed.body))
        return requests


class _ShardRun:
    """One attempt at a shard."""

    def __init__(
        self,
        task: RunRequestsInput,
        log: ShardLog,
        client: InferenceClient,
        limiter: Limiter,
        commit_interval: float,
        metrics: RequestMetrics,
    ) -> None:
        self._task = task
        self._log = log
        self._client = client
        self._limiter = limiter
        self._commit_interval = commit_interval
        self._metrics = metrics
        self._upstream = client.upstream.name
        self._waiting_since: float | None = None  # the first answer that is not in the store
        self._lines = OutputLines(task.batch_id, strict=task.strict_error_lines)
        self._requests: dict[int, _Request] = {}
        self._queue = Queue(task.batch_id, [], self._start)
        self._sending: dict[asyncio.Task[None], int] = {}  # with the replica that each is sent to
        self._idle = asyncio.Event()
        self._again: Counter[str] = Counter()  # reasons of those to be tried again
        self._most_tried = 0
        self._fault: Exception | None = None
        self._store_error = ""
        self._named = "" if client.upstream.is_only else f"upstream {client.upstream.name}: "
        self._loop = asyncio.get_running_loop()
        self._commit_timer: asyncio.TimerHandle | None = None
        self._commit_task: asyncio.Task[None] | None = None
        # From here on, not from the first request on: a store that hangs is no reason to take the worker for dead.
        self.heartbeat = ShardHeartbeat(self._progress, self._hold_back)

    async def run(self, requests: dict[int, _Request]) -> ShardResult:
        """Send ``requests``, by line number: those without a committed answer."""
        self._requests = requests
        self._queue.pending.extend(requests)
        try:
            if requests and not self.heartbeat.lapsed:
                self._limiter.add(self._queue, self._hold_back)
                await self._idle.wait()
            return await self._end("the worker was suspended" if self.heartbeat.lapsed else "")
        except asyncio.CancelledError:
            return await self._cancelled()
        finally:
            self._limiter.leave(self._hold_back)

    async def _cancelled(self) -> ShardResult:
        details = activity.cancellation_details()
        if details and details.paused and await self._in_flight_has_ended():
            return await self._end("the batch is paused")
        await self._drop()
        details = activity.cancellation_details()
        if self._limiter.draining or (details and details.worker_shutdown):
            await self._log.commit()  # one try: a process that is to end cannot wait for the store
            raise self._try_again("the worker stopped")
        await self._until_stored(self._log.commit)
        self.heartbeat.beat()
        raise asyncio.CancelledError

    async def _in_flight_has_ended(self) -> bool:
        """Paused: nothing more is sent, but what is in flight is paid for and may end, unless the batch is cancelled
        or the worker's time to drain is over.
        """
        self._limiter.withdraw(self._queue)
        try:
            while self._sending:
                await asyncio.wait(self._sending, timeout=BEAT_SECONDS)
                if self._sending and (self._limiter.drain_is_over or await self.heartbeat.hears_cancel()):
                    return False
        except asyncio.CancelledError:
            return False
        return True

    async def _end(self, held_back: str = "") -> ShardResult:
        """Everything that was to be sent has been: commit, and finish the shard or ask for another attempt."""
        if self._commit_task:
            await asyncio.shield(self._commit_task)  # a pause that comes now must not take it along
        if self._commit_timer:  # after the task, which may have set it
            self._commit_timer.cancel()
        if self._fault:
            await self._log.commit()
            raise self._fault
        if self._log.done == self._task.shard.requests:
            return await self._until_stored(self._log.finish)
        await self._until_stored(self._log.commit)
        self.heartbeat.beat()  # its details stay with the waiting activity, so that the counts hold meanwhile
        if self._limiter.draining:
            raise self._try_again("the worker is stopping")
        reason = held_back or (self._again.most_common(1)[0][0] if self._again else self._limiter.reason)
        raise self._try_again(reason)

    def _try_again(self, reason: str) -> ApplicationError:
        total = self._task.shard.requests
        backoff = min(FIRST_BACKOFF * 2 ** min(self._most_tried, 10), LONGEST_BACKOFF)
        # Zero would be taken for "not set", and shards that waited for the same pause should not come all at once.
        seconds = 0.001 if self._limiter.draining else max(self._limiter.pause_left, backoff) * random.uniform(1, 1.1)
        return ApplicationError(
            f"{total - self._log.done} of {total} requests to retry: {reason or 'the upstream is not available'}",
            type="RequestsToRetry",
            next_retry_delay=timedelta(seconds=seconds),
            category=ApplicationErrorCategory.BENIGN,
        )

    # Sending

    def _start(self, line: int, replica: int) -> None:
        task = self._loop.create_task(self._send(line, replica))
        self._sending[task] = replica
        task.add_done_callback(self._sent)

    async def _send(self, line: int, replica: int) -> None:
        sent_at = self._limiter.now()
        signal, wait, reason = Signal.UNCLEAR, None, ""
        try:
            answer = await self._client.send(self._task.endpoint, self._requests[line].body, replica)
            if answer.reason:
                answer = dataclasses.replace(answer, reason=self._named + answer.reason)
            if answer.status == HTTPStatus.BAD_GATEWAY and not self._limiter.answered_since(sent_at, replica):
                # A proxy says that the engine behind it is away, and nothing says otherwise: not this request's fault.
                answer = dataclasses.replace(answer, verdict=Verdict.UNREACHABLE)
            signal, wait, reason = _SIGNALS[answer.verdict], answer.retry_after, answer.reason
            self._take(line, answer)
        except Exception as error:  # a bug of ours: end the attempt with it instead of losing it in a task
            self._fault = error
            self._hold_back()
        self._limiter.finished(signal, sent_at, wait, reason, replica)

    def _sent(self, task: asyncio.Task[None]) -> None:
        replica = self._sending.pop(task)
        if task.cancelled():  # perhaps before its first step, so that nothing inside it has run
            self._limiter.finished(Signal.DROPPED, self._limiter.now(), replica=replica)
        self._check_idle()

    def _take(self, line: int, answer: Answer) -> None:
        custom_id = self._requests[line].custom_id
        if answer.verdict is Verdict.SUCCESS:
            assert answer.usage is not None
            self._log.add(line, "output", self._lines.success(line, custom_id, answer), answer.usage)
            self._metrics.ended(self._upstream, self._task.model, "completed", answer.usage)
        elif answer.verdict is Verdict.FINAL or (
            answer.verdict is Verdict.RETRY and self._log.note_failure(line) >= self._task.max_attempts
        ):
            self._log.add(line, "error", self._lines.error(line, custom_id, answer))
            self._metrics.ended(self._upstream, self._task.model, "failed")
        else:
            self._metrics.retried(self._upstream, answer)
            self._again[answer.reason] += 1
            self._most_tried = max(self._most_tried, self._log.tried.get(line, 0))
        if self._log.has(line):
            del self._requests[line]
        if self._log.has_uncommitted and self._waiting_since is None:
            self._waiting_since = self._loop.time()
        if self._log.has_uncommitted and not self._commit_timer and not self._commit_task:
            self._commit_timer = self._loop.call_later(self._commit_interval, self._commit_soon)

    def _hold_back(self) -> None:
        self._limiter.withdraw(self._queue)
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._sending and not self._queue.pending:
            self._idle.set()

    async def _drop(self) -> None:
        """Drop what is in flight and put an end to committing in the background."""
        self._limiter.withdraw(self._queue)
        sending = list(self._sending)
        for task in sending:
            task.cancel()  # closes its connection, so that the engine stops generating
        await asyncio.gather(*sending, return_exceptions=True)
        if self._commit_timer:
            self._commit_timer.cancel()
        if self._commit_task:
            self._commit_task.cancel()
            await asyncio.gather(self._commit_task, return_exceptions=True)

    # Committing

    def _commit_soon(self) -> None:
        self._commit_timer = None
        self._commit_task = self._loop.create_task(self._commit())

    async def _commit(self) -> None:
        await self._until_stored(self._log.commit)
        self._commit_task = None
        if self._log.has_uncommitted and not self._commit_timer:
            self._commit_timer = self._loop.call_later(self._commit_interval, self._commit_soon)

    async def _until_stored(self, store: Callable[[], Awaitable[T]]) -> T:
        """Store answers, however long the store is away: they are paid for, so no attempt ends without them.

        Meanwhile nothing more is sent.
        """
        blocked = False
        try:
            while True:
                try:
                    stored = await store()
                    self._measure_commit()
                    return stored
                except ObjectNotFound:
                    raise  # the parts are gone and nobody has finished: waiting brings nothing back
                except StoreError as error:
                    if not blocked:
                        blocked = True
                        activity.logger.warning("answers wait to be stored: %s", error)
                        self._store_error = self._limiter.reason = str(error)
                        self._limiter.block()
                    await asyncio.sleep(STORE_RETRY_SECONDS)
        finally:
            if blocked:
                self._store_error = ""
                self._limiter.unblock()

    def _measure_commit(self) -> None:
        now = self._loop.time()
        if self._waiting_since is not None:
            self._metrics.committed(now - self._waiting_since)
        self._waiting_since = now if self._log.has_uncommitted else None

    def _progress(self) -> ShardProgress:
        completed, failed = self._log.committed
        return ShardProgress(
            completed=completed,
            failed=failed,
            in_flight=len(self._sending),
            limit=int(self._limiter.limit),
            waits_for=self._store_error,
        )
