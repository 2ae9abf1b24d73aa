"""The runtime of the Temporal SDK: where its log lines go, and its metrics."""

from __future__ import annotations

import logging
from typing import Final

from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)

CORE_LOGGER: Final = "temporalio.core"
"""Logger of the SDK's lines that do not come from Python. By default the SDK writes them to the console directly."""

_COMMIT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WAIT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0, 14_400.0)


def make_runtime(metrics_address: str = "") -> Runtime:
    """Return a runtime whose log lines go to :data:`CORE_LOGGER`.

    Args: ``metrics_address`` is the ``host:port`` at which it serves Prometheus metrics, if any, at ``/metrics``.

    Raises:
        RuntimeError: the runtime cannot listen on the address.
    """
    forwarding = LogForwardingConfig(
        logging.getLogger(CORE_LOGGER), append_target_to_name=False, prepend_target_on_message=False
    )
    lines = LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding)
    metrics = _prometheus(metrics_address) if metrics_address else None
    return Runtime(telemetry=TelemetryConfig(logging=lines, metrics=metrics, attach_service_name=False))


def _prometheus(address: str) -> PrometheusConfig:
    return PrometheusConfig(
        bind_address=address,
        counters_total_suffix=True,
        unit_suffix=True,
        durations_as_seconds=True,
        histogram_bucket_overrides={
            "everbatch_commit_seconds": _COMMIT_BUCKETS,
            "activity_schedule_to_start_latency": _WAIT_BUCKETS,
        },
    )
