"""The metrics of docs/metrics.md are there, and dashboard and alert rules ask for no others."""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.service import RPCError

from activities.store.local import LocalStore
from activities.store.object_store import StoreError
from activities.temporal.connection import ConnectOptions, connect
from activities.temporal.runtime import make_runtime
from tests.integration.stack import Stack, requests, until
from workflows.contract import BATCH_WORKFLOW

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|(.*?)\|(.*?)\|", re.MULTILINE)
NAME = re.compile(r"\b(?:everbatch|temporal)_\w+\b")
SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


def documented() -> dict[str, tuple[str, set[str], str]]:
    """Kind, labels and where from, by name."""
    rows = ROW.findall((ROOT / "docs/metrics.md").read_text())
    assert len(rows) > 10
    return {name: (kind, set(re.findall(r"`(\w+)`", labels)), where.strip()) for name, kind, labels, where in rows}


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def families(text: str) -> dict[str, tuple[str, set[str]]]:
    """Kind and labels of each metric as served, counters with their suffix."""
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, {label for one in family.samples for label in one.labels} - {"le"})
    return found


async def fail_in_every_way(it: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """An activity, a workflow's code, and a call to Temporal."""
    read = LocalStore.stream
    failures = iter([StoreError("the store failed")])

    def fail_once(store: LocalStore, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if key.endswith("/input") and (failure := next(failures, None)):
            raise failure
        return read(store, key, offset, length)

    monkeypatch.setattr(LocalStore, "stream", fail_once)
    await it.run(requests(1, prefix="again"))
    assert next(failures, None) is None
    broken = await it.temporal.start_workflow(
        BATCH_WORKFLOW, "no spec", id=f"broken-{uuid.uuid4().hex}", task_queue=it.settings.task_queue
    )

    async def failed() -> bool:
        return (await broken.fetch_history()).events[-1].event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED

    await until(failed, "a workflow task that fails")
    await broken.terminate()
    with pytest.raises(RPCError):
        await it.temporal.get_workflow_handle("nowhere").describe()


async def test_each_documented_metric_is_served(
    temporal: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = free_address()
    runtime = make_runtime(address)
    client = await connect(temporal.service_client.config.target_host, ConnectOptions(runtime=runtime))
    async with Stack.open(client, tmp_path) as it, httpx2.AsyncClient() as http:
        await it.start_worker()
        await fail_in_every_way(it, monkeypatch)
        it.script(mode="status", status=503, times_each=1, match="r-1")
        await it.run(requests(3))
        it.script(mode="status", status=400, match="r-2")
        await it.run(requests(3))

        async def worker_text() -> str | None:
            text = (await http.get(f"http://{address}/metrics")).text
            return text if 'outcome="failed"' in text else None

        text = await until(worker_text, "a failed request in the metrics")
        assert text
        await it.http.get("/health")
        of_worker, of_api = families(text), families((await it.http.get("/metrics")).text)
        samples = {
            (one.name, *sorted(one.labels.values())): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }
    for name, (kind, labels, where) in documented().items():
        found = (of_api if where == "API" else of_worker)[name]
        assert found[0] == kind, name
        assert labels <= found[1] if name.startswith("temporal_") else labels == found[1], name
    ours = {name for name in {**of_worker, **of_api} if name.startswith("everbatch_") and not name.endswith("_created")}
    assert ours == {name for name in documented() if name.startswith("everbatch_")}
    assert samples["everbatch_requests_total", "completed", "default", "fake"] == 6
    assert samples["everbatch_requests_total", "default", "failed", "fake"] == 1
    assert samples["everbatch_retries_total", "default", "http_503"] == 1
    assert samples["everbatch_tokens_total", "fake", "output"] > 0
    assert samples["everbatch_commit_seconds_count",] >= 2


def expressions(panels: list[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_dashboard_and_alerts_ask_for_metrics_that_are_there() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/everbatch.json").read_text())
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    asked = [*expressions(dashboard["panels"]), *(rule["expr"] for rule in rules)]
    assert len(asked) > 15
    known = documented()
    for expression in asked:
        names = NAME.findall(expression)
        assert names, expression
        for name in names:
            assert SUFFIX.sub("", name) in known or name in known, name
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
