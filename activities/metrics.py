"""What an operator can see of a worker's limiters, beside the metrics that the Temporal SDK has of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from temporalio.common import MetricMeter
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from activities.limiter import Limiter

SAMPLE_SECONDS: Final = 1.0


def serve_metrics(address: str) -> Runtime:
    """A runtime that serves Prometheus metrics at ``http://<address>/metrics``.

    Raises:
        RuntimeError: the address cannot be listened on.
    """
    return Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(bind_address=address)))


async def report_limiters(limiters: Mapping[str, Limiter], meter: MetricMeter) -> None:
    """Report the state of each upstream's limiter every second, for ever."""
    limit = meter.create_gauge("everbatch_in_flight_limit", "Requests that the upstream is sent at once, as adapted.")
    in_flight = meter.create_gauge("everbatch_in_flight", "Requests in flight.")
    waiting = meter.create_gauge("everbatch_waiting", "Requests that wait in this worker for their turn.")
    paused = meter.create_gauge("everbatch_held_back", "1 while nothing is sent: the upstream or the store is away.")
    while True:
        for name, limiter in limiters.items():
            upstream = {"upstream": name}
            limit.set(int(limiter.limit), upstream)
            in_flight.set(limiter.in_flight, upstream)
            waiting.set(limiter.waiting, upstream)
            paused.set(int(limiter.held_back), upstream)
        await asyncio.sleep(SAMPLE_SECONDS)
