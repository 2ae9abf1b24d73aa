"""``GET /metrics`` of the API."""

from __future__ import annotations

from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_metrics_app
from tests.fakes.api import Api, open_api
from tests.unit.test_api_batches import create


async def metrics(api: Api) -> dict[tuple[str, ...], float]:
    """Each sample by its name and label values."""
    answer = await api.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation for family in families)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


async def test_requests_are_counted_by_route_and_status(tmp_path: Path) -> None:
    api = open_api(tmp_path)
    for batch_id in ("a", "b"):
        await api.http.get(f"/v1/batches/{batch_id}")
    await api.http.get("/v1/batches")
    await api.http.get("/nowhere/secret")
    found = await metrics(api)
    name = "everbatch_http_requests_total"
    assert found[name, "GET", "/v1/batches/{batch_id}", "404"] == 2
    assert found[name, "GET", "/v1/batches", "200"] == 1
    assert found[name, "GET", "none", "404"] == 1
    assert found["everbatch_http_request_duration_seconds_count", "GET", "/v1/batches"] == 1
    assert not any("secret" in label for sample in found for label in sample)


async def test_batches_are_counted_by_status_and_not_at_every_scrape(tmp_path: Path) -> None:
    api = open_api(tmp_path)
    await create(api)
    assert (await metrics(api))["everbatch_batches", "in_progress"] == 1
    await create(api)
    assert (await metrics(api))["everbatch_batches", "in_progress"] == 1  # for some seconds


async def test_without_temporal_there_is_no_figure_rather_than_an_old_one(tmp_path: Path) -> None:
    api = open_api(tmp_path)
    api.gateway.down = True
    found = await metrics(api)
    assert not any(name == "everbatch_batches" for name, *_ in found)


async def test_an_address_of_its_own_is_the_only_one(tmp_path: Path) -> None:
    api = open_api(tmp_path, api_metrics_address="127.0.0.1:0")
    await api.http.get("/v1/files")
    assert (await api.http.get("/metrics")).status_code == 404
    transport = httpx2.ASGITransport(create_metrics_app(api.app))
    async with httpx2.AsyncClient(transport=transport, base_url="http://metrics.internal") as http:
        assert 'route="/v1/files"' in (await http.get("/metrics")).text
        assert (await http.get("/v1/files")).status_code == 404
