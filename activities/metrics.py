"""What an operator can see of a worker's limiter, beside the metrics that the Temporal SDK has of its own."""

from __future__ import annotations

import asyncio
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


async def report_limiter(limiter: Limiter, meter: MetricMeter) -> None:
    """Report the limiter's state every second, for ever."""
    limit = meter.create_gauge("everbatch_in_flight_limit", "Requests that the upstream is sent at once, as adapted.")
    in_flight = meter.create_gauge("everbatch_in_flight", "Requests in flight.")
    waiting = meter.create_gauge("everbatch_waiting", "Requests that wait in this worker for their turn.")
    paused = meter.create_gauge("everbatch_held_back", "1 while nothing is sent: the upstream or the store is away.")
    while True:
        limit.set(int(limiter.limit))
        in_flight.set(limiter.in_flight)
        waiting.set(limiter.waiting)
        paused.set(int(limiter.held_back))
        await asyncio.sleep(SAMPLE_SECONDS)
