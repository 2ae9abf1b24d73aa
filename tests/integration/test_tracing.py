"""OpenTelemetry traces, as a collector receives them."""

from __future__ import annotations

import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from temporalio.client import Client

from activities.temporal.connection import ConnectOptions, connect
from activities.temporal.tracing import tracing
from tests.integration.stack import Stack, requests


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Generator[list[bytes]]:
    """What arrives at a collector's OTLP port."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield bodies
        server.shutdown()
        thread.join()


async def test_a_batch_is_one_trace_and_tells_no_text(temporal: Client, tmp_path: Path, collected: list[bytes]) -> None:
    with tracing("everbatch-test") as interceptors:
        traced = await connect(temporal.service_client.config.target_host, ConnectOptions(interceptors=interceptors))
        async with Stack.open(traced, tmp_path) as it:
            await it.start_worker()
            batch_id = await it.submit(requests(2, prefix="canary"))
            assert (await it.finished(batch_id)).counts == (2, 2, 0)
    requests_received = [ExportTraceServiceRequest.FromString(body) for body in collected]
    resources = [resource for one in requests_received for resource in one.resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    names = {span.name for span in spans}
    assert {"StartWorkflow:Batch", "RunWorkflow:Batch", "RunActivity:run_requests", "RunActivity:write_files"} <= names
    (start,) = [span for span in spans if span.name == "StartWorkflow:Batch"]
    ids = {attribute.value.string_value for attribute in start.attributes if attribute.key == "temporalWorkflowID"}
    assert ids == {batch_id}
    assert {span.trace_id for span in spans if span.name.startswith("RunActivity")} == {start.trace_id}
    services = {
        item.value.string_value for one in resources for item in one.resource.attributes if item.key == "service.name"
    }
    assert services == {"everbatch-test"}
    assert not any(b"canary" in body or b"say " in body for body in collected)


def test_without_an_endpoint_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with tracing("everbatch-test") as interceptors:
        assert interceptors == []
