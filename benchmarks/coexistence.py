"""What a batch costs people who call the engine directly, and what having regard for them costs the batch.

One person asks something short, waits for the answer, thinks, and asks again: alone, beside a batch, beside one of an
upstream with ``interactive_headroom``, and beside one with ``body = { priority = 100 }`` where the engine schedules by
priority. The ratio is that of the 99th percentile of the time to the first token to that of the person alone.

Without options the engines are simulated, as in :mod:`benchmarks.knee`. In front of a real one:

.venv/bin/python -m benchmarks.coexistence --llama 8
.venv/bin/python -m benchmarks.coexistence --url http://127.0.0.1:8081/v1 --model tiny --priority
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.engines import write_chat
from benchmarks.figures import report
from benchmarks.knee import EngineKind, Sharing, SimulatedEngine, run
from benchmarks.stack import Stack, run_stack
from tests.engines.llama import LlamaServer
from tests.free_ports import free_ports

HEADROOM = 0.2
PRIORITY = 100
TARGET = "<= 1.2 times alone"
THINK_SECONDS = 2.0
"""On the average; in front of a real engine, where minutes take minutes, the person is quick."""
REAL_THINK_SECONDS = 0.4
QUESTION_TOKENS = 24
"""In the answer to a person."""
TOKENS = 100
"""In a simulated answer of mean length."""
SETTLE_SECONDS = 45.0
"""Of a batch on a real engine, before anything is counted."""
SIMULATED_SETTLE_SECONDS = 120.0


@dataclass
class Person:
    begin: list[float] = field(default_factory=list[float])
    """Seconds to the first token, while the batch finds its level."""
    first: list[float] = field(default_factory=list[float])
    """The same, afterwards."""
    whole: list[float] = field(default_factory=list[float])
    """Seconds to the end of the answer."""


@dataclass(frozen=True)
class Case:
    name: str
    sharing: Sharing | None
    """``None`` is no batch at all."""


def cases(*, has_priority: bool) -> list[Case]:
    found = [
        Case("alone", None),
        Case("beside a batch", Sharing()),
        Case(f"headroom {HEADROOM:g}", Sharing(headroom=HEADROOM)),
    ]
    if has_priority:
        found += [
            Case("priority", Sharing(priority=PRIORITY)),
            Case("headroom and priority", Sharing(HEADROOM, PRIORITY)),
        ]
    return found


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def show(name: str, results: dict[str, tuple[Person, float]]) -> None:
    """Args: ``results`` has for each case the person and what the batch got done a second."""
    alone = results["alone"][0]
    full = results["beside a batch"][1]
    for case, (person, done) in results.items():
        ratio = p99(person.first) / p99(alone.first)
        share = f", the batch at {done / full:.2f} of its throughput" if done else ""
        begin = f" (in its first two minutes {p99(person.begin):.3f} s)" if person.begin else ""
        text = (
            f"{name}, {case}: first token p99 {p99(person.first):.3f} s{begin}, median "
            f"{statistics.median(person.first):.3f} s; whole answer p99 {p99(person.whole):.3f} s, "
            f"{len(person.whole)} answers{share}"
        )
        report("coexistence", ratio, TARGET, text, share=round(done / full, 3), load=os.getloadavg()[0])


# Simulated


def simulate(kind: EngineKind, case: Case, seconds: float, people: int) -> tuple[Person, float]:
    person = Person()
    chance = random.Random(0)

    async def ask(engine: SimulatedEngine) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(chance.expovariate(1 / THINK_SECONDS))
            sent = loop.time()

            def started(sent: float = sent) -> None:
                seen = person.begin if sent < SIMULATED_SETTLE_SECONDS else person.first
                seen.append(loop.time() - sent + engine.mean_seconds / TOKENS)

            await engine.serve(QUESTION_TOKENS / TOKENS, 0, started)
            person.whole.append(loop.time() - sent)

    async def all_ask(engine: SimulatedEngine) -> None:
        await asyncio.gather(*(ask(engine) for _ in range(people)))

    workers = 0 if case.sharing is None else 1
    ran = run(kind, None, seconds, workers, case.sharing, all_ask)
    return person, ran.share(seconds / 2, seconds) if workers else 0.0


def simulate_all(seconds: float, only: str) -> None:
    for slots, answer_seconds, slope, people in ((8, 2.0, 0.005, 1), (32, 3.0, 0.004, 1), (128, 5.0, 0.001, 4)):
        for reports in (True, False):
            report = "reports its queue" if reports else "reports nothing"
            kind = EngineKind(
                f"{slots} slots, {answer_seconds:g} s, {report}", slots, answer_seconds, slope, reports=reports
            )
            if only in kind.name:
                them = cases(has_priority=True)
                show(kind.name, {case.name: simulate(kind, case, seconds, people) for case in them})


# Real


async def ask(url: str, model: str, person: Person) -> None:
    """Ask again and again, for ever."""
    chance = random.Random(0)
    async with aiohttp.ClientSession() as session:
        while True:
            await asyncio.sleep(chance.expovariate(1 / REAL_THINK_SECONDS))
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"a question {chance.random()}"}],
                "max_tokens": QUESTION_TOKENS,
                "ignore_eos": True,
                "stream": True,
            }
            sent, first = time.perf_counter(), 0.0
            async with session.post(f"{url}/chat/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.content:
                    if line.startswith(b"data:") and not first:
                        first = time.perf_counter()
            person.first.append((first or time.perf_counter()) - sent)
            person.whole.append(time.perf_counter() - sent)


async def measure(args: argparse.Namespace, case: Case, url: str, model: str) -> tuple[Person, float]:
    person = Person()
    if case.sharing is None:
        await _for_a_while(ask(url, model, person), args.seconds)
        return person, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upstreams.toml"
        path.write_text(
            f'[[upstream]]\nname = "engine"\nurl = "{url}"\ninteractive_headroom = {case.sharing.headroom}\n'
            + (f"body = {{ priority = {case.sharing.priority} }}\n" if case.sharing.priority else "")
        )
        variables = {"EVERBATCH_UPSTREAM_URL": "", "EVERBATCH_UPSTREAMS": str(path)}
        async with run_stack(variables=variables) as stack:
            batch = await stack.create(
                await stack.upload(write_chat(stack.folder / "in.jsonl", args.count, model, args.tokens))
            )
            await asyncio.sleep(SETTLE_SECONDS)
            before, since = await _completed(stack, batch.id), time.perf_counter()
            await _for_a_while(ask(url, model, person), args.seconds)
            done = (await _completed(stack, batch.id) - before) / (time.perf_counter() - since)
            await stack.client.batches.cancel(batch.id)
            return person, done


async def _for_a_while(asking: Coroutine[Any, Any, None], seconds: float) -> None:
    task = asyncio.create_task(asking)
    await asyncio.wait({task}, timeout=seconds)
    if task.done():
        task.result()
    task.cancel()


async def _completed(stack: Stack, batch_id: str) -> int:
    batch = await stack.client.batches.retrieve(batch_id)
    if batch.status not in ("validating", "in_progress"):
        raise RuntimeError(f"the batch is {batch.status}: it needs more requests (--count)")
    return batch.request_counts.completed if batch.request_counts else 0


@contextlib.asynccontextmanager
async def engine(args: argparse.Namespace) -> AsyncGenerator[tuple[str, str]]:
    """URL and model of the engine."""
    if args.url:
        yield args.url, args.model
        return
    with tempfile.TemporaryDirectory() as folder:
        server = LlamaServer(Path(folder), free_ports(1)[0], slots=args.llama, tells_metrics=True)
        await server.start()
        try:
            yield server.url, server.model
        finally:
            await server.kill()


async def measure_all(args: argparse.Namespace) -> None:
    async with engine(args) as (url, model):
        results = {case.name: await measure(args, case, url, model) for case in cases(has_priority=args.priority)}
    show(f"llama.cpp, {args.llama} slots" if args.llama else url, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three minutes instead of half an hour, if simulated")
    parser.add_argument("--only", default="", help="simulated engines with this in their name")
    parser.add_argument("--url", default="", help="of a real engine that runs")
    parser.add_argument("--model", default="")
    parser.add_argument("--priority", action="store_true", help="the real engine schedules by priority")
    parser.add_argument("--llama", type=int, default=0, help="start llama.cpp with so many slots")
    parser.add_argument("--seconds", type=float, default=120, help="for each case in front of a real engine")
    parser.add_argument("--count", type=int, default=50_000, help="requests in the batch on a real engine")
    parser.add_argument("--tokens", type=int, default=800, help="in the longest answer of the batch")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    if args.url or args.llama:
        asyncio.run(measure_all(args))
    else:
        simulate_all(180.0 if args.quick else 1800.0, args.only)


if __name__ == "__main__":
    main()
