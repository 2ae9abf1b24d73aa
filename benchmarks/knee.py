"""``auto`` in flight: its share of the best fixed setting's throughput, on a clock that is not a wall's.

The limiter is the worker's own; engine, network and clock are simulated, so that five minutes pass in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import heapq
import math
import random
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from activities.upstreams.engine_load import EngineLoad
from activities.upstreams.judgement import Fault, Outcome
from activities.upstreams.lanes import Flight
from activities.upstreams.limiter import Limiter
from activities.upstreams.waiting_requests import WaitingRequests
from benchmarks.figures import report

SIGMA = 0.7
"""Of the lengths of answers, lognormal."""
NETWORK = 0.002
BATCH_SECONDS = 300.0
CEILING = 1024
KNEES = (1, 16, 128, 700)
MAX_ATTEMPTS = 5


class _Jump(selectors.DefaultSelector):
    """Instead of waiting for something to happen, the clock goes on to when it does."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


@dataclass(frozen=True)
class EngineKind:
    name: str
    slots: int
    seconds: float
    """Of an answer of mean length that has the engine for itself."""
    slope: float = 0.0
    """How much longer each step takes for each request that runs beside, as a share of the step's time alone."""
    refuses_beyond: int = 0
    """Requests in the engine; 429 for those that come then."""
    reports: bool = False
    timeout: float = 600.0

    @property
    def best(self) -> float:
        """Answers a second at the best level, of mean length."""
        return self.slots / (self.seconds * (1 + self.slope * self.slots))


class SimulatedEngine:
    """Requests that run share the steps of the engine; what has no slot waits, lower priorities and earlier ones first.

    As in vLLM, a request that runs keeps its slot, whatever waits.
    """

    def __init__(self, kind: EngineKind, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = kind
        self.waiting: list[tuple[int, int, float, asyncio.Future[bool], Callable[[], None]]] = []
        self._loop = loop
        self._progress = 0.0  # seconds of work that each request that runs has had since the beginning
        self._running: list[tuple[float, int, asyncio.Future[bool]]] = []
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(len(self._running), len(self.waiting))

    async def serve(self, work: float, priority: int = 0, on_start: Callable[[], None] = lambda: None) -> bool:
        """Whether it was taken in; returns when it is done. Args: ``on_start`` is called when it has a slot."""
        await asyncio.sleep(NETWORK)
        if self.kind.refuses_beyond and len(self._running) + len(self.waiting) >= self.kind.refuses_beyond:
            return False
        future: asyncio.Future[bool] = self._loop.create_future()
        self._number += 1
        heapq.heappush(self.waiting, (priority, self._number, work, future, on_start))
        self._go_on()
        return await future

    @property
    def mean_seconds(self) -> float:
        """Of an answer of mean length, beside those that run."""
        return self.kind.seconds * (1 + self.kind.slope * len(self._running))

    def _go_on(self) -> None:
        now = self._loop.time()
        self._progress += (now - self._since) / self.mean_seconds
        self._since = now
        while self._running and self._running[0][0] <= self._progress + 1e-9:
            _, _, future = heapq.heappop(self._running)
            if not future.done():
                future.set_result(True)
        while self.waiting and len(self._running) < self.kind.slots:
            _, number, work, future, on_start = heapq.heappop(self.waiting)
            if not future.done():
                heapq.heappush(self._running, (self._progress + work, number, future))
                on_start()
        if self._timer:
            self._timer.cancel()
        if self._running:
            seconds = max(0.0, self._running[0][0] - self._progress) * self.mean_seconds
            self._timer = self._loop.call_later(seconds, self._go_on)


class Client:
    """What a worker does with a limiter, with requests without end."""

    def __init__(self, engine: SimulatedEngine, limiter: Limiter, number: int, priority: int = 0) -> None:
        self.engine = engine
        self.limiter = limiter
        self.priority = priority
        self.done: list[tuple[float, float]] = []
        """When, and how much work."""
        self.lost = 0
        self.refused = 0
        self._loop = asyncio.get_running_loop()
        self._tried: dict[int, int] = {}
        self._next = number * 10_000_000
        self._tasks: set[asyncio.Task[None]] = set()

    def supply(self) -> None:
        if self.limiter.is_paused or self.limiter.waiting > 2000:
            return
        numbers = list(range(self._next, self._next + 4000))
        self._next += 4000
        queue = WaitingRequests("b", numbers, self._start)
        self.limiter.add(queue, lambda: self.limiter.withdraw(queue))

    def _start(self, number: int, flight: Flight) -> None:
        task = self._loop.create_task(self._send(number, flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, number: int, flight: Flight) -> None:
        work = math.exp(random.Random(number).gauss(0, SIGMA) - SIGMA * SIGMA / 2)
        outcome = Outcome.TIMED_OUT
        try:
            async with asyncio.timeout(self.engine.kind.timeout):
                outcome = Outcome.ANSWERED if await self.engine.serve(work, self.priority) else Outcome.OVERLOADED
        except TimeoutError:
            pass
        counted = number in self._tried
        if outcome is Outcome.ANSWERED:
            self.done.append((self._loop.time(), work))
            self.limiter.finished(flight, outcome, work=work * 100)
        else:
            self.refused += 1
            self.limiter.finished(flight, outcome, failed_before=counted)
            if await self.limiter.fault(flight, outcome, failed_before=counted) is Fault.REQUEST:
                self._tried[number] = self._tried.get(number, 0) + 1
                self.lost += self._tried[number] >= MAX_ATTEMPTS
            if self._tried.get(number, 0) < MAX_ATTEMPTS:
                await asyncio.sleep(1.0)
                retry = WaitingRequests("b", [number], self._start)
                self.limiter.add(retry, lambda: self.limiter.withdraw(retry))
        self.supply()


@dataclass
class Run:
    kind: EngineKind
    seconds: float
    limits: list[tuple[float, float]]
    """Each second, of all workers together."""
    clients: list[Client]

    def share(self, since: float, until: float) -> float:
        """Of the best fixed setting's throughput."""
        done = sum(work for client in self.clients for at, work in client.done if since < at <= until)
        return done / (until - since) / self.kind.best

    @property
    def answered(self) -> int:
        return sum(len(client.done) for client in self.clients)

    @property
    def refused(self) -> int:
        return sum(client.refused for client in self.clients)

    @property
    def lost(self) -> int:
        return sum(client.lost for client in self.clients)


Beside = Callable[[SimulatedEngine], Coroutine[Any, Any, None]]
"""Another client of the engine, which runs until it is cancelled."""


@dataclass(frozen=True)
class Sharing:
    """What the workers do for other clients."""

    headroom: float = 0.0
    priority: int = 0


async def _simulate(
    kind: EngineKind, fixed: int | None, seconds: float, workers: int, sharing: Sharing, beside: Beside | None
) -> Run:
    loop = asyncio.get_running_loop()
    engine = SimulatedEngine(kind, loop)
    options: dict[str, Any] = {"finds_level": fixed is None, "headroom": sharing.headroom}
    clients = [
        Client(engine, Limiter(fixed or CEILING, loop.time, timeout=kind.timeout, **options), number, sharing.priority)
        for number in range(workers)
    ]
    limits: list[tuple[float, float]] = []
    other = loop.create_task(beside(engine)) if beside else None
    while loop.time() < seconds:
        for client in clients:
            client.supply()
            client.limiter.observe_load(0, engine.load if kind.reports else None)
        await asyncio.sleep(1.0)
        limits.append((loop.time(), sum(client.limiter.limit for client in clients)))
    if other and other.done():
        other.result()
    return Run(kind, seconds, limits, clients)


def run(
    kind: EngineKind,
    fixed: int | None,
    seconds: float = BATCH_SECONDS,
    workers: int = 1,
    sharing: Sharing | None = None,
    beside: Beside | None = None,
) -> Run:
    """Args: ``fixed`` is the number in flight; ``None`` finds its own level."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_simulate(kind, fixed, seconds, workers, sharing or Sharing(), beside))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def kinds() -> list[EngineKind]:
    silent = [
        *(
            EngineKind(f"{slots} slots, {seconds:g} s", slots, seconds)
            for slots in KNEES
            for seconds in ((0.2 if slots < 700 else 0.5), 5.0)
        ),
        EngineKind("16 slots, 0.2 s, 429 beyond", 16, 0.2, refuses_beyond=16),
        EngineKind("128 slots, 1 s, 429 beyond", 128, 1.0, refuses_beyond=128),
        EngineKind("1 slot, 1.3 s, timeout 8 s", 1, 1.3, timeout=8.0),
        EngineKind("128 that slow each other down, 1 s", 128, 1.0, slope=0.02),
    ]
    return [*silent, *(dataclasses.replace(kind, reports=True) for kind in silent)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute instead of five")
    parser.add_argument("--only", default="", help="engines with this in their name")
    parser.add_argument("--trace", action="store_true", help="print how the limit went")
    args = parser.parse_args()
    seconds = 60.0 if args.quick else BATCH_SECONDS
    for kind in kinds():
        if args.only not in kind.name:
            continue
        ran = run(kind, None, seconds)
        steady, batch = ran.share(seconds / 2, seconds), ran.share(0, seconds)
        limits = [limit for at, limit in ran.limits if at > seconds / 2]
        text = (
            f"{kind.name}{', reports its queue' if kind.reports else ''}: whole batch {batch:.3f} (target >= 0.9), "
            f"limit {min(limits):.0f} to {max(limits):.0f}, refused {ran.refused} of {ran.answered}, lost {ran.lost}"
        )
        report("knee", steady, ">= 0.95 of the best fixed setting", text, batch=round(batch, 4), lost=ran.lost)
        if args.trace:
            print(" ".join(f"{at:.0f}:{limit:.0f}" for at, limit in ran.limits[:: max(1, len(ran.limits) // 30)]))


if __name__ == "__main__":
    main()
