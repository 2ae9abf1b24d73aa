"""``GET /metrics`` of the API."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

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
