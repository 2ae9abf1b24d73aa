from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.types import Message

from activities.endpoints import ENDPOINTS
from activities.records.batch_webhooks import BatchWebhook, BatchWebhooks
from activities.records.catalog import Catalog
from activities.records.create_notes import CreateNotes
from activities.store.object_store import StoreError
from api.routes.limits import TooManyBatchesError
from tests.fakes.api import Api, error_of, open_api
from workflows.ids import BatchRef
from workflows.types import BatchError, BatchPhase, BatchSpec, BatchStatus, Counts, Usage

GOOD: dict[str, Any] = {
    "input_file_id": "file-x",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
KEYS = {
    *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status"),
    *("output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at"),
    *("completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage"),
    *("metadata", "retried_by", "progress", "error_summary"),
}


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path, completion_windows="24h,5s", task_queue="q", max_attempts=7, heartbeat_timeout=9)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """For tests of many rows that do not look at what is in it: to make one takes longer than most of them."""
    return open_api(
        tmp_path_factory.mktemp("shared"),
        completion_windows="24h,5s",
        task_queue="q",
        max_attempts=7,
        heartbeat_timeout=9,
    )


async def create(api: Api, headers: dict[str, str] | None = None, **changes: Any) -> Any:
    return await api.http.post("/v1/batches", json=GOOD | changes, headers=headers)


async def set_status(api: Api, batch_id: str, **status: Any) -> dict[str, Any]:
    view = await api.gateway.find(BatchRef("default", batch_id))
    api.gateway.set_status(view.record, BatchStatus(**status))
    return (await api.http.get(f"/v1/batches/{batch_id}")).json()


async def test_a_new_batch_has_every_key(api: Api) -> None:
    response = await create(api)
    assert response.status_code == 200
    batch = response.json()
    assert set(batch) == KEYS
    assert re.fullmatch("batch_[0-9a-f]{32}", batch["id"])
    assert abs(batch["created_at"] - time.time()) < 5
    zeros = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    set_: dict[str, Any] = {
        **GOOD,
        "id": batch["id"],
        "object": "batch",
        "status": "validating",
        "created_at": batch["created_at"],
        "expires_at": batch["created_at"] + 86400,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": zeros | details,
        "progress": {
            "requests_per_second": None,
            "eta_seconds": None,
            "in_flight": 3,
            "in_flight_limit": None,
            "shared_upstreams": [],
            "waiting": None,
            "waiting_reason": None,
            "next_attempt_at": None,
            "as_of": None,
        },
    }
    assert batch == dict.fromkeys(KEYS) | set_
    assert (await api.http.get(f"/v1/batches/{batch['id']}")).json() == batch


async def test_the_spec_carries_the_settings(api: Api) -> None:
    policy = {"anchor": "created_at", "seconds": 3600}
    await create(api, completion_window="5s", metadata={"k": "v"}, output_expires_after=policy, unknown="x")
    (spec,) = api.gateway.created
    assert spec.tenant == "default"
    assert (spec.completion_window, spec.window_seconds) == ("5s", 5)
    assert (spec.metadata, spec.output_expires_after) == ({"k": "v"}, 3600)
    assert (spec.max_attempts, spec.heartbeat_timeout) == (7, 9)
    assert spec.inference_task_queue == "q-inference"
    assert (spec.max_requests, spec.max_input_bytes) == (50_000, 209_715_200)
    await create(api)
    assert api.gateway.created[1].output_expires_after == 30 * 24 * 3600
    assert api.gateway.created[1].batch_id != spec.batch_id


async def test_the_stock_client(api: Api) -> None:
    batch = await api.openai.batches.create(**GOOD, metadata={"a": "b"})
    assert (await api.openai.batches.retrieve(batch.id)).metadata == {"a": "b"}
    assert [each.id async for each in api.openai.batches.list()] == [batch.id]
    cancelled = await api.openai.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch_x'"):
        await api.openai.batches.retrieve("batch_x")


@pytest.mark.parametrize(
    "endpoint",
    [
        "/v1/responses",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/completions",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/videos",
    ],
)
async def test_endpoints(shared: Api, endpoint: str) -> None:
    assert (await create(shared, endpoint=endpoint)).json()["endpoint"] == endpoint


async def test_a_finished_batch(api: Api) -> None:
    batch_id = (await create(api)).json()["id"]
    batch = await set_status(
        api,
        batch_id,
        phase=BatchPhase.COMPLETED,
        model="m",
        counts=Counts(total=3, completed=2, failed=1),
        usage=Usage(input_tokens=10, cached_tokens=4, output_tokens=5, reasoning_tokens=1),
        output_file_id="file-o",
        error_file_id="file-e",
        completed_at=7,
    )
    assert set(batch) == KEYS
    assert batch["status"] == "completed"
    assert (batch["output_file_id"], batch["error_file_id"], batch["model"]) == ("file-o", "file-e", "m")
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert batch["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 15,
    }
    assert batch["progress"] is None


async def test_a_failed_batch_says_why(api: Api) -> None:
    batch_id = (await create(api)).json()["id"]
    errors = [
        BatchError(code="invalid_json_line", message="not JSON", line=2),
        BatchError(code="x", message="y", param="z"),
    ]
    batch = await set_status(api, batch_id, phase=BatchPhase.FAILED, errors=errors, errors_total=500)
    assert batch["errors"] == {
        "object": "list",
        "data": [
            {"code": "invalid_json_line", "message": "not JSON", "param": None, "line": 2},
            {"code": "x", "message": "y", "param": "z", "line": None},
        ],
    }


@pytest.mark.parametrize(
    ("phase", "shown"),
    [
        (BatchPhase.VALIDATING, "cancelling"),
        (BatchPhase.IN_PROGRESS, "cancelling"),
        (BatchPhase.FINALIZING, "cancelling"),
        (BatchPhase.CANCELLED, "cancelled"),
        (BatchPhase.COMPLETED, "completed"),
    ],
)
async def test_a_batch_that_was_cancelled_says_so(api: Api, phase: BatchPhase, shown: str) -> None:
    batch_id = (await create(api)).json()["id"]
    batch = await set_status(api, batch_id, phase=phase, cancelling_at=5)
    assert (batch["status"], batch["cancelling_at"]) == (shown, 5)


async def test_cancel(api: Api) -> None:
    batch_id = (await create(api)).json()["id"]
    headers = {"content-type": "application/json"}  # and no body, as the stock clients send it
    first = await api.http.post(f"/v1/batches/{batch_id}/cancel", headers=headers)
    assert (first.status_code, first.json()["status"]) == (200, "cancelling")
    again = await api.http.post(f"/v1/batches/{batch_id}/cancel", headers=headers)
    assert (again.status_code, again.json()) == (200, first.json())
    cancelled = await set_status(api, batch_id, phase=BatchPhase.CANCELLED, cancelling_at=1, cancelled_at=2)
    third = await api.http.post(f"/v1/batches/{batch_id}/cancel", headers=headers)
    assert (third.status_code, third.json()) == (200, cancelled)


@pytest.mark.parametrize("phase", [BatchPhase.COMPLETED, BatchPhase.FAILED, BatchPhase.EXPIRED])
async def test_cancel_of_what_has_ended(api: Api, phase: BatchPhase) -> None:
    batch_id = (await create(api)).json()["id"]
    await set_status(api, batch_id, phase=phase)
    response = await api.http.post(f"/v1/batches/{batch_id}/cancel")
    assert response.status_code == 409
    assert phase.value in error_of(response)["message"]


# Idempotency


@pytest.mark.parametrize("in_header", [False, True])
async def test_a_key_makes_one_batch(api: Api, in_header: bool) -> None:
    arguments: dict[str, Any] = {"headers": {"Idempotency-Key": "k"}} if in_header else {"idempotency_key": "k"}
    first = await create(api, **arguments)
    again = await create(api, **arguments)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["id"] == again.json()["id"]
    assert len(api.gateway.created) == 1
    assert (await create(api)).json()["id"] != first.json()["id"]


async def test_the_header_wins(api: Api) -> None:
    batch = (await create(api, headers={"Idempotency-Key": "a"}, idempotency_key="b")).json()
    assert (await create(api, idempotency_key="a")).json()["id"] == batch["id"]
    assert (await create(api, idempotency_key="b")).json()["id"] != batch["id"]


@pytest.mark.parametrize(
    "changes",
    [
        {"input_file_id": "file-y"},
        {"endpoint": "/v1/embeddings"},
        {"completion_window": "5s"},
        {"metadata": {"a": "1"}},
        {"metadata": {}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
    ],
)
async def test_a_key_with_other_parameters_is_a_conflict(api: Api, changes: dict[str, Any]) -> None:
    await create(api, idempotency_key="k", metadata=None)
    again: dict[str, Any] = {"idempotency_key": "k", "metadata": None} | changes
    response = await create(api, **again)
    assert response.status_code == 409
    assert response.headers["x-should-retry"] == "false"
    error = error_of(response)
    assert "conflict" in error["message"].lower()
    assert len(api.gateway.created) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"metadata": {"a": "1", "b": "2"}}, {"metadata": {"b": "2", "a": "1"}}),
        ({"metadata": None}, {}),
        ({"unknown": 1}, {"unknown": 2}),
    ],
)
async def test_what_makes_no_difference(api: Api, first: dict[str, Any], second: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "k"}
    batch = (await create(api, headers=headers, **first)).json()
    assert (await create(api, headers=headers, **second)).json()["id"] == batch["id"]


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_keys_that_cannot_be(api: Api, key: str) -> None:
    response = await create(api, headers={"Idempotency-Key": key})
    assert response.status_code == 400
    assert error_of(response)["param"] == "Idempotency-Key"


async def test_a_conflict_is_not_tried_again_by_the_stock_client(api: Api) -> None:
    client = api.openai.with_options(max_retries=2)
    await client.batches.create(**GOOD, extra_headers={"Idempotency-Key": "k"})
    with pytest.raises(openai.ConflictError) as error:
        await client.batches.create(**GOOD, metadata={"a": "b"}, extra_headers={"Idempotency-Key": "k"})
    assert error.value.request.headers["x-stainless-retry-count"] == "0"


# Lists


def save(api: Api, number: int, phase: BatchPhase = BatchPhase.IN_PROGRESS) -> str:
    spec = BatchSpec(
        batch_id=f"batch_{number}",
        tenant="default",
        window_seconds=86400,
        created_ms=number * 1000,
        digest="",
        **GOOD,
    )
    catalog = Catalog(api.store)
    catalog.create_batch(spec)
    api.gateway.set_status(catalog.get_batch(spec.ref), BatchStatus(phase=phase))
    return spec.batch_id


async def page(api: Api, **query: Any) -> tuple[list[int], bool]:
    response = await api.http.get("/v1/batches", params=query)
    assert response.status_code == 200
    listed = response.json()
    ids = [each["id"] for each in listed["data"]]
    assert (listed["first_id"], listed["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    return [int(each.removeprefix("batch_")) for each in ids], listed["has_more"]


async def test_an_empty_list(api: Api) -> None:
    listed = (await api.http.get("/v1/batches")).json()
    assert listed == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_pages(api: Api) -> None:
    for number in range(5):
        save(api, number)
    assert await page(api) == ([4, 3, 2, 1, 0], False)
    assert await page(api, order="asc", limit=2) == ([0, 1], True)
    assert await page(api, limit=2) == ([4, 3], True)
    assert await page(api, limit=2, after="batch_3") == ([2, 1], True)
    assert await page(api, limit=2, after="batch_2") == ([1, 0], False)
    assert await page(api, after="batch_0") == ([], False)
    assert [each.id async for each in api.openai.batches.list(limit=2)] == [f"batch_{n}" for n in (4, 3, 2, 1, 0)]


async def test_the_default_page_is_twenty(api: Api) -> None:
    for number in range(21):
        save(api, number)
    assert await page(api) == (list(range(20, 0, -1)), True)


async def test_only_what_runs_has_progress(api: Api) -> None:
    for number in range(10):
        save(api, number, BatchPhase.COMPLETED if number < 4 else BatchPhase.IN_PROGRESS)
    listed = (await api.http.get("/v1/batches")).json()
    assert [each["progress"] is None for each in listed["data"]] == [False] * 6 + [True] * 4


@pytest.mark.parametrize("after", ["batch_x", "", "..", "file-1"])
async def test_a_page_after_what_is_not_there(api: Api, after: str) -> None:
    response = await api.http.get("/v1/batches", params={"after": after})
    assert response.status_code == 400
    assert error_of(response)["param"] == "after"


async def test_a_key_of_a_batch_stands_for_the_content_of_its_file(api: Api) -> None:
    async def uploaded(content: bytes) -> str:
        return (await api.openai.files.create(file=("a.jsonl", content), purpose="batch")).id

    first = (await create(api, idempotency_key="k", input_file_id=await uploaded(b"one"))).json()
    again = await create(api, idempotency_key="k", input_file_id=await uploaded(b"one"))
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    other = await create(api, idempotency_key="k", input_file_id=await uploaded(b"other"))
    assert other.status_code == 409
    assert "conflict" in error_of(other)["message"].lower()
    await api.openai.files.delete(first["input_file_id"])
    assert (await create(api, idempotency_key="k", input_file_id=first["input_file_id"])).json()["id"] == first["id"]


EMBEDDINGS: dict[str, Any] = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}


async def create_try(api: Api, retry: str | None = None, **changes: Any) -> Any:
    headers = {} if retry is None else {"x-stainless-retry-count": retry}
    return await api.http.post("/v1/batches", json=EMBEDDINGS | changes, headers=headers)


# 4.1


async def test_an_operator_may_allow_more_endpoints(tmp_path: Path) -> None:
    api = open_api(tmp_path, extra_endpoints="/v1/score, /v1/rerank,/v1/score")
    assert (await create_try(api, endpoint="/v1/rerank")).json()["endpoint"] == "/v1/rerank"
    error = error_of(await create_try(api, endpoint="/v1/classify"))
    names = ", ".join(f"'{name}'" for name in [*ENDPOINTS, "/v1/score"])
    assert error["message"] == f"Invalid value: '/v1/classify'. Supported values are: {names} and '/v1/rerank'."
    assert error["code"] == "invalid_value"


async def test_azures_endpoints_without_a_version_are_those_with_it(api: Api) -> None:
    for endpoint in ("/chat/completions", "/embeddings"):
        assert (await create_try(api, endpoint=endpoint)).json()["endpoint"] == f"/v1{endpoint}"
    assert (await create_try(api, endpoint="/nowhere")).status_code == 400


async def test_other_spellings_of_an_endpoint_are_400(api: Api) -> None:
    for endpoint in ("/v1/chat/completions/", "v1/embeddings", "/V1/embeddings", "", "/v1/v1/videos"):
        error = error_of(await create_try(api, endpoint=endpoint))
        assert (error["code"], error["param"]) == ("invalid_value", "endpoint")


async def test_a_file_that_is_not_there_is_no_error_of_the_create(api: Api) -> None:
    response = await create_try(api, input_file_id="file-nowhere")
    assert (response.status_code, response.json()["status"]) == (200, "validating")


# 4.4


def save_at(api: Api, number: int, created_ms: int) -> str:
    spec = BatchSpec(
        **EMBEDDINGS, batch_id=f"batch_{number}", tenant="default", window_seconds=9, created_ms=created_ms, digest=""
    )
    Catalog(api.store).create_batch(spec)
    return spec.batch_id


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_of_one_walk_over_batches_of_one_moment(api: Api, order: str) -> None:
    names = [save_at(api, number, 7000 + number // 3) for number in range(6)]
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


async def lost(api: Api, retry: str, **changes: Any) -> None:
    """A create whose client leaves before its answer, as one does whose time for it is over."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": json.dumps(EMBEDDINGS | changes).encode()}

    async def send(message: Message) -> None:
        pass

    headers = [(b"content-type", b"application/json"), (b"x-stainless-retry-count", retry.encode())]
    headers.append((b"host", b"localhost"))
    scope = {"type": "http", "method": "POST", "path": "/v1/batches", "query_string": b"", "headers": headers}
    await api.app(scope | {"http_version": "1.1", "client": ("127.0.0.1", 1)}, receive, send)


async def test_a_retry_of_the_sdk_is_answered_with_the_batch_of_its_first_try(api: Api) -> None:
    await lost(api, "0", metadata={"a": "1", "b": "2"})
    await lost(api, "1", metadata={"b": "2", "a": "1"})
    again = await create_try(api, "2", metadata={"b": "2", "a": "1"})
    assert (again.status_code, again.json()["id"]) == (200, api.gateway.created[0].batch_id)
    assert len(api.gateway.created) == 1


async def test_a_retry_whose_first_try_never_arrived_gets_no_earlier_batch(api: Api) -> None:
    """An identical batch of before whose answer was delivered is not the one that was lost."""
    earlier = (await create_try(api, "0")).json()
    resent = (await create_try(api, "1")).json()
    assert resent["id"] != earlier["id"]
    await lost(api, "1")  # by another client: what it lost is no first try of a create of ours
    assert (await create_try(api, "1")).json()["id"] not in {spec.batch_id for spec in api.gateway.created[:-1]}
    assert [name for name in api.stored() if name.startswith("creates/")] != []


async def test_a_first_call_is_never_taken_for_a_retry(api: Api) -> None:
    counts = [None, "0", "0", None, "00", "-1", "x", "", "1.5"]
    answers = [await create_try(api, count) for count in counts]
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
async def test_a_retry_of_another_create_is_a_batch_of_its_own(api: Api, changes: dict[str, Any]) -> None:
    await lost(api, "0")
    await lost(api, "1", **changes)
    first, other = api.gateway.created
    assert first.batch_id != other.batch_id
    assert (await create_try(api, "2", **changes)).json()["id"] == other.batch_id


async def test_a_retry_long_after_is_a_batch_of_its_own(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later than its client can have waited for the first answer and paused behind it."""
    now = time.time_ns()
    await lost(api, "0")
    first = api.gateway.created[0].batch_id
    monkeypatch.setattr(time, "time_ns", lambda: now + 735 * 10**9)
    assert (await create_try(api, "1")).json()["id"] != first
    monkeypatch.setattr(time, "time_ns", lambda: now + 715 * 10**9)
    assert (await create_try(api, "1")).json()["id"] == first


async def test_a_retry_of_a_try_whose_start_came_to_nothing_takes_up_its_id(api: Api) -> None:
    api.gateway.down = True
    assert (await create_try(api, "0")).status_code == 503
    assert (await create_try(api, "1")).status_code == 503
    assert (await api.http.get("/v1/batches")).json()["data"] == []  # as yet there is none
    api.gateway.down = False
    batch = (await create_try(api, "2")).json()
    listed = (await api.http.get("/v1/batches")).json()["data"]
    assert [each["id"] for each in listed] == [batch["id"]]
    assert len([name for name in api.stored() if name.startswith("index/")]) == 1


async def test_a_retry_that_overtakes_its_first_try_shares_its_id(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
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
    first = asyncio.create_task(create_try(api, "0"))
    await started.wait()
    again = await create_try(api, "1")
    held.set()
    assert (await first).json() == again.json()
    assert ids[0] == ids[1]
    assert len(api.gateway.created) == 1


async def test_a_create_that_a_limit_refuses_leaves_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise TooManyBatchesError("default", 1)

    with monkeypatch.context() as patch:
        patch.setattr(api.gateway, "create", refuse)
        for count in ("0", "1", "2"):
            assert (await create_try(api, count)).status_code == 429
    assert api.stored() == []
    assert (await create_try(api, "3")).status_code == 200


async def test_a_key_is_stronger_than_a_count(api: Api) -> None:
    unkeyed = (await create_try(api, "0")).json()
    keyed = (await create_try(api, "1", idempotency_key="k")).json()
    assert keyed["id"] != unkeyed["id"]


async def test_a_create_that_cannot_be_noted_goes_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StoreError("No space left on device")

    def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(CreateNotes, "add", full)
    monkeypatch.setattr(Catalog, "create_batch", nothing)
    assert (await create_try(api, "0")).status_code == 200
    assert len(api.gateway.created) == 1


# A webhook of its own

OWN_WEBHOOK = {"url": "https://hooks.example/x?token=CANARY", "secret": "CANARY", "events": ["batch.failed"]}


async def test_a_webhook_is_kept_beside_the_batch_alone(api: Api) -> None:
    batch = (await create(api, webhook=OWN_WEBHOOK)).json()
    (spec,) = api.gateway.created
    assert spec.webhooks == ["(batch)"]
    assert "CANARY" not in spec.model_dump_json()
    own = BatchWebhooks(api.store).get(BatchRef("default", batch["id"]))
    assert own == BatchWebhook(**OWN_WEBHOOK)  # pyright: ignore[reportArgumentType]


async def test_a_webhook_is_a_parameter_and_its_secret_is_none(api: Api) -> None:
    first = await create(api, webhook=OWN_WEBHOOK, idempotency_key="k")
    again = await create(api, webhook=OWN_WEBHOOK | {"secret": "another"}, idempotency_key="k")
    assert again.json()["id"] == first.json()["id"]
    assert BatchWebhooks(api.store).get(BatchRef("default", first.json()["id"])).secret == "CANARY"
    other = await create(api, webhook=OWN_WEBHOOK | {"url": "https://hooks.example/y"}, idempotency_key="k")
    assert other.status_code == 409
    assert BatchWebhooks(api.store).get(BatchRef("default", first.json()["id"])).url == OWN_WEBHOOK["url"]


async def test_the_webhook_of_a_create_that_failed_is_not_that_of_the_next(api: Api) -> None:
    api.gateway.down = True
    assert (await create(api, webhook=OWN_WEBHOOK, idempotency_key="k")).status_code == 503
    api.gateway.down = False
    batch = (await create(api, webhook=OWN_WEBHOOK | {"secret": "corrected"}, idempotency_key="k")).json()
    assert BatchWebhooks(api.store).get(BatchRef("default", batch["id"])).secret == "corrected"


@pytest.mark.parametrize(
    ("webhook", "param", "words"),
    [
        ({"url": "https://h"}, "webhook.secret", "Missing required parameter"),
        ({"secret": "s"}, "webhook.url", "Missing required parameter"),
        ({"url": "ftp://h", "secret": "s"}, "webhook.url", "the URL is not an http:// or https:// URL."),
        ({"url": "https://u:CANARY@h", "secret": "s"}, "webhook.url", "must not contain a user name or password"),
        ({"url": "https://h", "secret": "whsec_!"}, "webhook.secret", "must continue in base64"),
        ({"url": "https://h", "secret": ""}, "webhook.secret", "empty string"),
        ({"url": "https://h", "secret": "s", "events": ["batch.started"]}, "webhook.events.0", "Supported values are"),
        ({"url": "https://h", "secret": "s", "events": []}, "webhook.events", "Invalid 'webhook.events'"),
    ],
)
async def test_webhooks_that_are_refused(shared: Api, webhook: dict[str, Any], param: str, words: str) -> None:
    refused = await create(shared, webhook=webhook)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert "CANARY" not in refused.text
