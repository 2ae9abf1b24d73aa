"""``GET /metrics`` of the API, for Prometheus. Temporal's SDK serves its metrics on ``EVERBATCH_METRICS_ADDRESS``."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from api.gateway.interface import Gateway, TemporalUnavailableError
from api.gateway.shared_looks import SharedLooks

COUNT_SECONDS: Final = 10.0
"""Time in seconds for which a count of batches is reused, however often the metrics are scraped."""
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ApiMetrics:
    """The counters of one API process, and the number of batches. No label contains text from a client."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "everbatch_http_requests",
            "Requests answered by the API.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "everbatch_http_request_duration_seconds",
            "Time from the request's first byte to the response's last.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._batches = Gauge(
            "everbatch_batches",
            "Batches by status, as Temporal knows them; ended ones until its retention period is over.",
            ["status"],
            registry=self._registry,
        )
        self._counts: SharedLooks[str, dict[str, int]] = SharedLooks(COUNT_SECONDS, 1)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request and its duration. ``route`` is the pattern of its path, not the path."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    async def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        try:
            counts = await self._counts.get("all", self._gateway.count_by_status)
        except TemporalUnavailableError:
            self._batches.clear()  # no figure is better than an old one
        else:
            for status, count in counts.items():
                self._batches.labels(status).set(count)
        return generate_latest(self._registry)


_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def metrics_router(metrics: ApiMetrics) -> APIRouter:
    router = APIRouter(tags=["Health"])

    async def show() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(await metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    # Not PlainTextResponse, which would make the OpenAPI document declare errors as plain text too.
    router.get("/metrics", name="metrics", response_class=Response, responses=_TEXT)(show)
    return router
