"""The metrics of a worker, in addition to those of the Temporal SDK; see docs/metrics.md."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Final

from temporalio.common import MetricMeter

from activities.upstreams.answers import Answer
from activities.upstreams.limiter import Limiter
from workflows.types import Usage

SAMPLE_SECONDS: Final = 1.0

MAX_MODELS: Final = 100
"""Maximum number of model names that become labels in one process: clients can send any name."""
SEVERAL: Final = "mixed"
OTHERS: Final = "other"


class RequestMetrics:
    """Counts finished and retried requests.

    Counts are kept in plain dictionaries and passed to the meter once a second: a call of the meter for each request
    would cost more than everything else that is done with an answer.
    """

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._retries: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._commits: list[float] = []

    def ended(self, upstream: str, model: str, outcome: str, usage: Usage | None = None) -> None:
        """Count a finished request. Args: ``model`` is the only model of its batch, or empty."""
        model = self._label(model)
        self._requests[upstream, model, outcome] += 1
        if usage:
            for kind, count in usage:
                self._tokens[model, kind.removesuffix("_tokens")] += count

    def retried(self, upstream: str, answer: Answer) -> None:
        """Count a request that will be sent again after this answer."""
        self._retries[upstream, f"http_{answer.status}" if answer.status else answer.code or "unreachable"] += 1

    def committed(self, seconds: float) -> None:
        """Record a commit, and the seconds since the first of its answers arrived."""
        self._commits.append(seconds)

    def _label(self, model: str) -> str:
        if not model:
            return SEVERAL
        if model not in self._models:
            if len(self._models) >= MAX_MODELS:
                return OTHERS
            self._models.add(model)
        return model

    async def report(self, meter: MetricMeter) -> None:
        """Pass the counts to the meter every second, until cancelled."""
        requests = meter.create_counter("everbatch_requests", "Requests that are finished: completed or failed.")
        retries = meter.create_counter("everbatch_retries", "Responses after which a request is retried.")
        tokens = meter.create_counter("everbatch_tokens", "Tokens of completed requests.")
        commits = meter.create_histogram_float(
            "everbatch_commit_seconds", "Time from the first waiting response until it is in the store."
        )
        while True:
            for (upstream, model, outcome), count in self._requests.items():
                requests.add(count, {"upstream": upstream, "model": model, "outcome": outcome})
            for (upstream, reason), count in self._retries.items():
                retries.add(count, {"upstream": upstream, "reason": reason})
            for (model, kind), count in self._tokens.items():
                tokens.add(count, {"model": model, "kind": kind})
            for seconds in self._commits:
                commits.record(seconds)
            for counts in (self._requests, self._retries, self._tokens, self._commits):
                counts.clear()
            await asyncio.sleep(SAMPLE_SECONDS)


async def report_limiters(limiters: Mapping[str, Limiter], meter: MetricMeter) -> None:
    """Report the state of each upstream's limiter every second, until cancelled."""
    limit = meter.create_gauge("everbatch_in_flight_limit", "Maximum number of requests in flight, as adapted.")
    in_flight = meter.create_gauge("everbatch_in_flight", "Requests in flight.")
    waiting = meter.create_gauge("everbatch_waiting", "Requests that wait in the worker to be sent.")
    paused = meter.create_gauge(
        "everbatch_paused", "1 while nothing is sent because the upstream or the store is down."
    )
    while True:
        for name, limiter in limiters.items():
            upstream = {"upstream": name}
            limit.set(int(limiter.limit), upstream)
            in_flight.set(limiter.in_flight, upstream)
            waiting.set(limiter.waiting, upstream)
            paused.set(int(limiter.is_paused), upstream)
        await asyncio.sleep(SAMPLE_SECONDS)
