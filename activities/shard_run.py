"""Runs one attempt at a shard: sends its requests, handles each answer, and decides how the attempt ends."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Iterable
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.heartbeats import BEAT_SECONDS, ShardHeartbeat, last_progress
from activities.passing_failures import try_again
from activities.process import Process
from activities.results.commits import Commits
from activities.results.first_answers import has_output
from activities.results.output_lines import OutputLines
from activities.results.shard_input import ShardRequest
from activities.results.shard_log import ShardLog
from activities.results.tries import Tries
from activities.store.object_store import ObjectStore
from activities.upstreams.answers import Answer, Verdict
from activities.upstreams.client import InferenceClient
from activities.upstreams.judgement import OUTCOMES, Fault, Outcome
from activities.upstreams.lanes import Flight
from activities.upstreams.limiter import Limiter
from activities.upstreams.metrics import RequestMetrics
from activities.upstreams.retry_delay import retry_delay
from activities.upstreams.waiting_requests import WaitingRequests
from activities.upstreams.waits import silence_of, unavailable_wait, wait_after
from workflows.contract import WRONG_ROUTE
from workflows.types import RunRequestsInput, ShardProgress, ShardResult
from workflows.waits import EndsBy, Wait, WaitKind, pause_wait, worker_wait

COSTLY_SENDS: Final = 2
"""Maximum number of times that a request is sent whose answers take the engine's full work but cannot be used."""

LOSSES: Final = 2
"""Number of attempts at a shard lost with their workers from which its requests are sent one at a time."""
LOSSES_ALONE: Final = 3
"""Number of losses with a request as the only suspect in flight from which it becomes an error line. Not fewer: another
request that is not suspected yet may crash two workers meanwhile, before it is sent alone too."""

AT_ONCE: Final = 0.001
"""Seconds. Temporal would take zero for "not set"."""


class ShardRun:
    """One attempt at a shard."""

    def __init__(
        self,
        task: RunRequestsInput,
        log: ShardLog,
        committing: Commits,
        store: ObjectStore,
        client: InferenceClient,
        limiter: Limiter,
        metrics: RequestMetrics,
        process: Process,
        turn: str,
    ) -> None:
        self._task = task
        self._log = log
        self._commits = committing
        self._store = store
        self._client = client
        self._limiter = limiter
        self._metrics = metrics
        self._upstream = client.upstream
        self._first_answers = process.first_answers.of(task.batch_id)
        self._cancels = process.cancels
        self._run_id = activity.info().workflow_run_id or ""
        self._suspect = process.suspect
        self._lines = OutputLines(task.batch_id, strict=task.strict_error_lines)
        self._requests: dict[int, ShardRequest] = {}
        self._turn = turn
        self._queues: list[WaitingRequests] = []  # one for each model
        self._sending: dict[asyncio.Task[None], Flight] = {}
        self._judging: set[asyncio.Task[None]] = set()  # requests whose failures are not judged yet
        self._is_stopped = False
        self._is_cancelled = False
        self._fails_alone = False
        self._idle = asyncio.Event()
        self._again: Counter[Wait] = Counter()  # of the requests to retry
        self._most_tried = 0
        self._bug: Exception | None = None
        self._wait: Wait | None = None
        self._loop = asyncio.get_running_loop()
        before = last_progress()
        self._losses = before.losses
        log.committed = (before.completed, before.failed)  # until the log is loaded
        # Heartbeats begin here, not with the first request: a store that hangs must not look like a lost worker.
        self.heartbeat = ShardHeartbeat(self._progress, self._stop_sending)

    async def run(self, requests: dict[int, ShardRequest]) -> ShardResult:
        """Send ``requests``, by line number, which have no committed answer, and return the result of the shard."""
        self._requests = requests
        token = activity.info().task_token
        try:
            async with self._cancels.watched(self._run_id, token, self._progress, self._stop_at_once):
                return await self._run()
        finally:
            self._commits.release_all()

    async def _run(self) -> ShardResult:
        try:
            with self._first_answers.watched(self._stop_sending):
                if self._requests and not self._is_stopped:
                    await self._send()
            if self._is_cancelled and self._requests:
                await activity.wait_for_cancelled()  # the SDK cancels it only once it knows of the cancellation too
            return await self._end(worker_wait("was suspended") if self.heartbeat.lapsed else None)
        except asyncio.CancelledError:
            return await self._cancelled()

    async def _send(self) -> None:
        if activity.info().attempt > 1:
            self.heartbeat.beat()  # without a heartbeat, a loss of this attempt would go unnoticed
        if await self.heartbeat.is_forgotten() or self._is_stopped:
            return
        if self._convict() or self._losses < LOSSES:
            await self._send_all(list(self._requests))
        else:
            await self._send_one_by_one()

    async def _send_all(self, lines: list[int]) -> None:
        """Send these requests. When this returns, each has ended or waits for another attempt."""
        of_model: dict[str, list[int]] = {}
        for line in lines:
            of_model.setdefault(self._requests[line].model, []).append(line)
        self._idle.clear()
        self._queues = [
            WaitingRequests(self._turn, some, self._start, model, self._task.batch_id)
            for model, some in of_model.items()
        ]
        try:
            for queue in self._queues:
                self._limiter.add(queue, functools.partial(self._withdraw, queue))
            self._check_idle()
            await self._idle.wait()
        finally:
            for queue in self._queues:
                self._limiter.leave(queue)

    # Requests that may crash workers

    def _convict(self) -> bool:
        """Write an error line for each request that was the only suspect in ``LOSSES_ALONE`` losses of workers.

        Returns whether there is one. If so, the other requests are no longer suspected.
        """
        guilty = [line for line in self._requests if self._log.tries(line).lost >= LOSSES_ALONE]
        for line in guilty:
            message = (
                f"The worker process that sent this request was lost, {LOSSES_ALONE} times with no other cause left."
            )
            refused = self._lines.refused(line, self._requests.pop(line).custom_id, "worker_lost", message)
            self._log.add(line, "error", refused, reason="worker_lost")
            self._metrics.ended(self._upstream.name, self._task.model, "failed")
            self._losses = 0
        self._commits.soon()
        return bool(guilty)

    async def _send_one_by_one(self) -> None:
        self._wait = worker_wait("was lost repeatedly, so the requests that it had go one at a time")
        for line in list(self._requests):
            async with self._suspect:
                if self._is_stopped or self._limiter.is_paused:
                    return
                await self._send_alone(line)

    async def _send_alone(self, line: int) -> None:
        tries = self._log.tries(line)
        self._log.note_tries(line, tries._replace(alone=tries.alone + 1))
        try:
            await self._commits.until_stored(self._log.commit)
            if not self._is_stopped:
                await self._send_all([line])
        finally:
            tries = self._log.tries(line)
            self._log.note_tries(line, tries._replace(ended=tries.ended + 1))

    # The end of the attempt

    async def _cancelled(self) -> ShardResult:
        details = activity.cancellation_details()
        if details and details.paused and await self._in_flight_has_ended():
            return await self._end(pause_wait("is paused"))
        if details and details.cancel_requested:
            self._cancels.notify(self._run_id)
        await self._drop()
        details = activity.cancellation_details()
        if self._limiter.draining or (details and details.worker_shutdown):
            await self._log.commit()  # one try: a stopping process cannot wait for the store
            raise self._try_again(worker_wait("stopped"))
        await self._commits.until_stored(self._log.commit)
        raise asyncio.CancelledError

    async def _in_flight_has_ended(self) -> bool:
        """Let the requests in flight of a paused shard end, as they are paid for, and send no more. Returns whether
        they have ended, which may be cut short by a cancellation of the batch or the worker's drain timeout.
        """
        self._stop_sending()
        try:
            while self._sending and not self._limiter.drain_is_over:
                await asyncio.wait(self._sending, timeout=BEAT_SECONDS)
        except asyncio.CancelledError:
            return False
        return not (self._sending or self._is_cancelled)

    async def _end(self, stopped_by: Wait | None = None) -> ShardResult:
        """Commit, then finish the shard if all requests have answers, or else ask for another attempt."""
        await _cancel_all(self._judging)  # left if the shard was stopped; the next attempt decides
        await self._commits.settle()
        if self._bug:
            await self._log.commit()
            raise self._bug
        is_done = self._log.done == self._task.shard.requests
        result = await self._commits.until_stored(self._log.finish) if is_done else None
        if failure := self._first_answers.failure:
            await self._commits.until_stored(self._log.commit)
            await self._end_batch(failure)
        if result:
            return result
        if self._limiter.draining:
            stopped_by = worker_wait("is stopping")
        wait = self._again.most_common(1)[0][0] if self._again else self._limiter.wait
        wait = stopped_by or wait or unavailable_wait(self._upstream)
        if self._pause() and not stopped_by:  # without a pause, others are answered
            self._log.waits.begin(wait)
        await self._commits.until_stored(self._log.commit)
        raise self._try_again(wait)

    async def _end_batch(self, failure: str) -> None:
        """Fail the batch, as all its requests get the same 404, unless another worker has received a result."""
        if await asyncio.to_thread(has_output, self._store, self._task.ref):
            self._first_answers.differ = True
            return
        raise ApplicationError(failure, type=WRONG_ROUTE, non_retryable=True, category=ApplicationErrorCategory.BENIGN)

    def _pause(self) -> float:
        models = {request.model for request in self._requests.values()}
        return max((self._limiter.pause_for(model, self._task.batch_id) for model in models), default=0.0)

    def _try_again(self, wait: Wait) -> ApplicationError:
        pause = self._pause()
        seconds = retry_delay(self._most_tried, pause, self._task.max_attempts if self._fails_alone else None)
        if self._limiter.draining:
            seconds = AT_ONCE
        if not pause and wait.kind is not WaitKind.STORE:  # others are answered, so these will be error lines
            wait = wait.model_copy(update={"ends_by": EndsBy.ITSELF})
        return try_again(self._task, self._log.done, wait, seconds)

    def waiting(self) -> int:
        """Return the number of requests that have not been sent."""
        return sum(len(queue.pending) for queue in self._queues)

    # Sending

    def _start(self, line: int, flight: Flight) -> None:
        task = self._loop.create_task(self._send_request(line, flight))
        self._sending[task] = flight
        task.add_done_callback(self._sent)

    async def _send_request(self, line: int, flight: Flight) -> None:
        self._limiter.began(flight)
        if self.heartbeat.has_lapsed():
            return
        try:
            answer = await self._client.send(self._task.endpoint, self._requests[line].body, flight.replica)
            outcome, failed_before = OUTCOMES[answer.verdict], self._log.tries(line).failed > 0
            wait = None if outcome is Outcome.ANSWERED else wait_after(answer, self._upstream, flight.replica)
            try:
                if outcome is Outcome.ANSWERED:
                    self._take(line, answer)
                self._ended(flight, outcome, answer, wait, failed_before)
                if outcome is Outcome.UNREACHABLE:
                    self._take(line, answer, wait)
                elif outcome is not Outcome.ANSWERED:
                    is_its_fault = await self._is_its_fault(flight, outcome, failed_before)
                    self._take(line, answer, wait, is_its_fault=is_its_fault)
            finally:
                if answer.held and self._log.has(line):
                    self._commits.hold(answer.held)
                elif answer.held:
                    answer.held.release()
        except Exception as error:  # a bug: end the attempt with it instead of losing it in a task
            self._bug = error
            self._stop_sending()

    def _ended(self, flight: Flight, outcome: Outcome, answer: Answer, wait: Wait | None, failed_before: bool) -> None:
        """Record that a request is no longer in flight, although its task may continue."""
        task = asyncio.current_task()
        assert task
        del self._sending[task]
        self._judging.add(task)
        if outcome is Outcome.ANSWERED and not answer.status:
            outcome = Outcome.DROPPED  # the request was never sent
        work = max(1, answer.usage.output_tokens) if answer.usage else 0
        self._limiter.finished(flight, outcome, answer.retry_after, wait, failed_before=failed_before, work=work)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._judging.discard(task)
        if flight := self._sending.pop(task, None):  # cancelled, perhaps before its first step
            self._limiter.finished(flight, Outcome.DROPPED)
        self._check_idle()

    async def _is_its_fault(self, flight: Flight, outcome: Outcome, failed_before: bool) -> bool:
        """Wait until it can be decided whether a failure is the request's own fault, and return whether it is."""
        fault = await self._limiter.fault(flight, outcome, failed_before=failed_before)
        if fault is Fault.ALONE and await self._client.is_up(flight.replica):
            self._fails_alone = True
            return True
        return fault is Fault.REQUEST

    def _take(self, line: int, answer: Answer, wait: Wait | None = None, *, is_its_fault: bool = False) -> None:
        """Log an answer or note the request for a retry. Args: ``wait`` is the reason to wait before the retry."""
        custom_id = self._requests[line].custom_id
        if answer.status and not self._first_answers.differ and answer.verdict in (Verdict.SUCCESS, Verdict.FINAL):
            self._first_answers.add(answer)
        if answer.verdict is Verdict.SUCCESS:
            assert answer.usage is not None
            self._log.add(line, "output", self._lines.success(line, custom_id, answer), answer.usage)
            self._metrics.ended(self._upstream.name, self._task.model, "completed", answer.usage)
        elif answer.verdict is Verdict.FINAL or (is_its_fault and self._has_failed_for_good(line, answer)):
            self._log.add(line, "error", self._lines.error(line, custom_id, answer), reason=answer.reason)
            self._metrics.ended(self._upstream.name, self._task.model, "failed")
        else:
            self._metrics.retried(self._upstream.name, answer)
            self._again[wait or unavailable_wait(self._upstream)] += 1
            self._most_tried = max(self._most_tried, self._log.tries(line).failed)
        if self._log.has(line):
            del self._requests[line]
            self._log.waits.end(WaitKind.UPSTREAM, WaitKind.MODEL)
        self._commits.soon()

    def _has_failed_for_good(self, line: int, answer: Answer) -> bool:
        """Count a failure that is the request's own fault. Returns whether it has reached the maximum."""
        allowed = min(COSTLY_SENDS, self._task.max_attempts) if answer.is_costly else self._task.max_attempts
        failed = self._log.tries(line).failed + 1
        self._log.note_tries(line, Tries(failed))
        return failed >= allowed

    def _withdraw(self, queue: WaitingRequests) -> None:
        """Withdraw the requests of a queue, which must not be sent for now."""
        self._is_stopped = True
        self._limiter.withdraw(queue)
        self._check_idle()

    def _stop_sending(self) -> None:
        self._is_stopped = True
        for queue in self._queues:
            self._withdraw(queue)

    def _stop_at_once(self) -> None:
        """Handle the cancellation of the batch: close connections, so that engines stop generating."""
        self._is_cancelled = True
        self._stop_sending()
        for task in [*self._sending, *self._judging]:
            task.cancel()

    def _check_idle(self) -> None:
        if not (self._sending or self._judging or any(queue.pending for queue in self._queues)):
            self._idle.set()

    async def _drop(self) -> None:
        """Drop the requests in flight and stop committing in the background."""
        self._stop_sending()
        await _cancel_all([*self._sending, *self._judging])  # closes connections, so that engines stop generating
        await self._commits.drop()

    def _progress(self) -> ShardProgress:
        completed, failed = self._log.committed
        wait = self._commits.wait or self._wait or silence_of(self._sending.values(), self._upstream)
        now = self._loop.time()
        if wait:
            self._log.waits.begin(wait)
        return ShardProgress(
            completed=completed,
            failed=failed,
            in_flight=len(self._sending),
            limit=int(self._limiter.limit),
            wait=wait,
            has_ended=self.heartbeat.has_ended,
            losses=self._losses,
            errors=self._log.committed_errors,
            waits=self._log.waits.past,
            done_at=self._log.committed_at,
            oldest_seconds=max((now - flight.sent.sent_at for flight in self._sending.values()), default=0.0),
        )


async def _cancel_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
