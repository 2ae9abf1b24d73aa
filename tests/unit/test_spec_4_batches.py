"""SPEC.md section 4, what test_api_batches.py does not hold: docs/contract.md says which test holds which rule."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from activities.catalog import Catalog
from activities.settings import ENDPOINTS
from activities.storage import StoreError
from api.batches import RETRY_SECONDS
from api.limits import NoPlace
from tests.fakes.api import Api, error_of, open_api
from workflows.types import BatchSpec

GOOD: dict[str, Any] = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path)


async def create(api: Api, retry: str | None = None, **changes: Any) -> Any:
    headers = {} if retry is None else {"x-stainless-retry-count": retry}
    return await api.http.post("/v1/batches", json=GOOD | changes, headers=headers)


# 4.1


async def test_4_1_an_operator_may_allow_more_endpoints(tmp_path: Path) -> None:
    api = open_api(tmp_path, extra_endpoints="/v1/score, /v1/rerank,/v1/score")
    assert (await create(api, endpoint="/v1/rerank")).json()["endpoint"] == "/v1/rerank"
    error = error_of(await create(api, endpoint="/v1/classify"))
    names = ", ".join(f"'{name}'" for name in [*ENDPOINTS, "/v1/score"])
    assert error["message"] == f"Invalid value: '/v1/classify'. Supported values are: {names} and '/v1/rerank'."
    assert error["code"] == "invalid_value"


async def test_4_1_azures_endpoints_without_a_version_are_those_with_it(api: Api) -> None:
    for endpoint in ("/chat/completions", "/embeddings"):
        assert (await create(api, endpoint=endpoint)).json()["endpoint"] == f"/v1{endpoint}"
    assert (await create(api, endpoint="/nowhere")).status_code == 400


async def test_4_1_other_spellings_of_an_endpoint_are_400(api: Api) -> None:
    for endpoint in ("/v1/chat/completions/", "v1/embeddings", "/V1/embeddings", "", "/v1/v1/videos"):
        error = error_of(await create(api, endpoint=endpoint))
        assert (error["code"], error["param"]) == ("invalid_value", "endpoint")


async def test_4_1_a_file_that_is_not_there_is_no_error_of_the_create(api: Api) -> None:
    response = await create(api, input_file_id="file-nowhere")
    assert (response.status_code, response.json()["status"]) == (200, "validating")


# 4.4


def save(api: Api, number: int, created_ms: int) -> str:
    spec = BatchSpec(
        **GOOD, batch_id=f"batch_{number}", tenant="default", window_seconds=9, created_ms=created_ms, digest=""
    )
    Catalog(api.store).create_batch(spec)
    return spec.batch_id


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_4_4_pages_of_one_walk_over_batches_of_one_moment(api: Api, order: str) -> None:
    names = [save(api, number, 7000 + number // 3) for number in range(6)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 1, "order": order}
    while True:
        page = (await api.http.get("/v1/batches", params=query)).json()
        (batch,) = page["data"]
        assert (page["first_id"], page["last_id"]) == (batch["id"], batch["id"])
        seen.append(batch["id"])
        query["after"] = batch["id"]
        if not page["has_more"]:
            break
    assert sorted(seen) == names
    times = [int(name.removeprefix("batch_")) // 3 for name in seen]
    assert times == sorted(times, reverse=order == "desc")


# 4.7: the SDK sends no idempotency key, only how often it has tried before


async def test_4_7_a_retry_of_the_sdk_is_answered_with_the_batch_of_its_first_try(api: Api) -> None:
    first = (await create(api, "0", metadata={"a": "1", "b": "2"})).json()
    for count in ("1", "2"):
        again = await create(api, count, metadata={"b": "2", "a": "1"})
        assert (again.status_code, again.json()) == (200, first)
    assert len(api.gateway.created) == 1


async def test_4_7_a_first_call_is_never_taken_for_a_retry(api: Api) -> None:
    counts = [None, "0", "0", None, "00", "-1", "x", "", "1.5"]
    answers = [await create(api, count) for count in counts]
    assert len({answer.json()["id"] for answer in answers}) == len(counts)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_file_id": "file-y"},
        {"endpoint": "/v1/completions"},
        {"metadata": {}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
    ],
)
async def test_4_7_a_retry_of_another_create_is_a_batch_of_its_own(api: Api, changes: dict[str, Any]) -> None:
    first = (await create(api, "0")).json()
    other = (await create(api, "1", **changes)).json()
    assert other["id"] != first["id"]
    assert (await create(api, "2", **changes)).json()["id"] == other["id"]


async def test_4_7_a_retry_long_after_is_a_batch_of_its_own(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    first = (await create(api, "0")).json()
    monkeypatch.setattr(time, "time_ns", lambda: now + (RETRY_SECONDS - 5) * 10**9)
    assert (await create(api, "1")).json()["id"] == first["id"]
    monkeypatch.setattr(time, "time_ns", lambda: now + (RETRY_SECONDS + 5) * 10**9)
    assert (await create(api, "1")).json()["id"] != first["id"]


async def test_4_7_a_retry_of_a_try_whose_start_came_to_nothing_takes_up_its_id(api: Api) -> None:
    api.gateway.down = True
    assert (await create(api, "0")).status_code == 503
    assert (await create(api, "1")).status_code == 503
    assert (await api.http.get("/v1/batches")).json()["data"] == []  # as yet there is none
    api.gateway.down = False
    batch = (await create(api, "2")).json()
    assert (await create(api, "3")).json() == batch
    listed = (await api.http.get("/v1/batches")).json()["data"]
    assert [each["id"] for each in listed] == [batch["id"]]
    assert len([name for name in api.stored() if name.startswith("index/")]) == 1


async def test_4_7_a_retry_that_overtakes_its_first_try_shares_its_id(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try hangs in its start; Temporal starts an id once, so one of the two is answered with the other's."""
    start, started, held = api.gateway.create, asyncio.Event(), asyncio.Event()
    ids: list[tuple[str, int]] = []

    async def hang_once(spec: BatchSpec, *, idempotent: bool) -> Any:
        ids.append((spec.batch_id, spec.created_ms))
        if len(ids) == 1:
            started.set()
            await held.wait()
        return await start(spec, idempotent=True)

    monkeypatch.setattr(api.gateway, "create", hang_once)
    first = asyncio.create_task(create(api, "0"))
    await started.wait()
    again = await create(api, "1")
    held.set()
    assert (await first).json() == again.json()
    assert ids[0] == ids[1]
    assert len(api.gateway.created) == 1


async def test_4_7_a_create_that_a_limit_refuses_leaves_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise NoPlace("default", 1)

    with monkeypatch.context() as patch:
        patch.setattr(api.gateway, "create", refuse)
        for count in ("0", "1", "2"):
            assert (await create(api, count)).status_code == 429
    assert api.stored() == []
    assert (await create(api, "3")).status_code == 200


async def test_4_7_a_key_is_stronger_than_a_count(api: Api) -> None:
    unkeyed = (await create(api, "0")).json()
    keyed = (await create(api, "1", idempotency_key="k")).json()
    assert keyed["id"] != unkeyed["id"]


async def test_4_7_a_create_that_cannot_be_noted_goes_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StoreError("No space left on device")

    def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(Catalog, "note_create", full)
    monkeypatch.setattr(Catalog, "create_batch", nothing)
    assert (await create(api, "0")).status_code == 200
    assert len(api.gateway.created) == 1
