"""OpenTelemetry traces, which need ``pip install 'everbatch[otel]'`` and the standard ``OTEL_EXPORTER_OTLP_ENDPOINT``.

A trace leads from the API's start of a batch through its workflow to each activity. It has Temporal's names and ids,
and no content of requests or answers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import Final

from temporalio.client import Interceptor

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"


class TracingMissingError(Exception):
    """Tracing is configured, but its packages are not installed."""


@contextlib.contextmanager
def tracing(service: str) -> Generator[list[Interceptor]]:
    """Yield the interceptors for a Temporal client, none if no endpoint is set. Spans are sent until the context ends.

    Args:
        service: the process's name in the traces, unless ``OTEL_SERVICE_NAME`` is set.

    Raises:
        TracingMissingError: an endpoint is set, but the extra is not installed.
    """
    if not os.environ.get(ENDPOINT):
        yield []
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from temporalio.contrib.opentelemetry import TracingInterceptor
    except ImportError as error:
        raise TracingMissingError(f"{ENDPOINT} is set: install everbatch[otel], or unset it ({error})") from error
    name = os.environ.get("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield [TracingInterceptor(provider.get_tracer("everbatch"))]
    finally:
        provider.shutdown()
