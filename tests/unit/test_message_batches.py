"""Anthropic's Message Batches API: what is created, shown, listed, deleted, and how errors look."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.records.catalog import Catalog, FileRecord
from activities.records.keys import content_key
from api.routes.message_results import result_of
from api.tenants.key_editing import create_key
from api.tenants.keys import KeyFile
from tests.fakes.api import Api, chunked, open_api
from workflows.ids import BatchRef
from workflows.types import BatchError, BatchPhase, BatchRecord, BatchStatus, Counts

URL = "/v1/messages/batches"


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """For tests of many rows that leave nothing in it: to make one takes longer than most of them."""
    return open_api(tmp_path_factory.mktemp("shared"))


def message(custom_id: str = "a", **params: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "żółw\u2028"}], **params}
    return {"custom_id": custom_id, "params": {name: value for name, value in body.items() if value is not ...}}


async def create(api: Api, *requests: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = await api.http.post(URL, json={"requests": list(requests or [message()])}, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def error_of(response: httpx2.Response) -> tuple[int, str, str]:
    """Status, type and message, once it is sure to be Anthropic's envelope."""
    envelope = response.json()
    assert list(envelope) == ["type", "error", "request_id"]
    assert envelope["type"] == "error"
    assert response.headers["request-id"] == envelope["request_id"]
    return response.status_code, envelope["error"]["type"], envelope["error"]["message"]


def end(api: Api, batch: dict[str, Any], phase: BatchPhase, **status: Any) -> BatchRecord:
    catalog = Catalog(api.store)
    record = catalog.get_batch(BatchRef("default", "batch_" + batch["id"].removeprefix("msgbatch_")))
    now = int(time.time())
    ended = {BatchPhase.CANCELLED: "cancelled_at", BatchPhase.EXPIRED: "expired_at", BatchPhase.FAILED: "failed_at"}
    times = {ended.get(phase, "completed_at"): now}
    return api.gateway.set_status(record, BatchStatus(phase=phase, **times, **status))


def add_file(api: Api, name: str, *lines: dict[str, Any]) -> str:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    api.store.put(content_key("default", name), content)
    record = FileRecord(id=name, bytes=len(content), created_ms=1, filename=name, purpose="batch_output")
    Catalog(api.store).save_file("default", record)
    return name


def line(custom_id: str, status: int | None, body: Any = None, code: str = "", message: str = "") -> dict[str, Any]:
    response = None if status is None else {"status_code": status, "request_id": "req_up", "body": body}
    error = {"code": code, "message": message} if code else None
    return {"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": error}


async def results(api: Api, batch: dict[str, Any]) -> dict[str, Any]:
    response = await api.http.get(f"{URL}/{batch['id']}/results")
    assert response.status_code == 200, response.text
    return {line["custom_id"]: line["result"] for line in map(json.loads, response.text.splitlines())}


async def test_a_new_batch_is_a_batch_of_both_apis(api: Api) -> None:
    batch = await create(api, message("a"), message("b"))
    assert batch == {
        "id": batch["id"],
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": 2, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
        "ended_at": None,
        "created_at": batch["created_at"],
        "expires_at": batch["expires_at"],
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    assert (await api.http.get(f"{URL}/{batch['id']}")).json() == batch
    (ours,) = (await api.openai.batches.list()).data
    assert batch["id"] == "msgbatch_" + ours.id.removeprefix("batch_")
    assert ours.endpoint == "/v1/messages"
    lines = (await api.openai.files.content(ours.input_file_id)).text.splitlines()  # which cuts at U+2028 too
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", "b"]
    assert json.loads(lines[0]) == {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/messages",
        "body": message()["params"],
    }
    (spec,) = api.gateway.created
    assert (spec.inline_requests, spec.max_requests, spec.window_seconds) == (2, 2, 86_400)


async def test_a_body_in_pieces_with_line_ends_inside(api: Api) -> None:
    body = json.dumps({"requests": [message(f"r{n}") for n in range(300)]}, indent=2).encode()
    response = await api.http.post(URL, content=chunked(body, 1000))
    assert response.status_code == 200
    (spec,) = api.gateway.created
    lines = (await api.openai.files.content(spec.input_file_id)).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r{n}" for n in range(300)]


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "requests: List should have at least 1 item."),
        ([message(""), message("b")], "requests.0.custom_id: String should match pattern"),
        ([message("a"), message("a")], "requests.1.custom_id: 'a' is that of another request of the batch."),
        ([message("a"), message("b", max_tokens=...)], "requests.1.params.max_tokens: Field required."),
        ([message(model=7)], "requests.0.params.model: Input should be a valid string."),
        ([message(messages="hello")], "requests.0.params.messages: Input should be a valid list."),
        ([message(stream=True)], "requests.0.params.stream: Streaming is not supported in batches."),
        ([{"custom_id": "a"}], "requests.0: Input should be an object with a custom_id and params"),
        (["hello"], "requests.0: Input should be an object with a custom_id and params"),
    ],
)
async def test_requests_that_are_refused(shared: Api, requests: list[Any], said: str) -> None:
    before = shared.stored()
    status, kind, text = error_of(await shared.http.post(URL, json={"requests": requests}))
    assert (status, kind) == (400, "invalid_request_error")
    assert text.startswith(said)
    assert (shared.stored(), shared.gateway.created) == (before, [])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "The request body is not valid JSON"),
        (b"{}", "requests: Field required"),
        (b'{"requests": {}}', "requests: Field required"),
        (b'{"requests": [{"custom_id": "a", "params": {]]}', "The request body is not valid JSON"),
        (b'{"requests": [], "requests": []}', "requests: Field occurs more than once"),
        (b'{"requests": [{"custom_id": "\xff"}]}', "The request body is not valid JSON"),
    ],
)
async def test_bodies_that_are_refused(shared: Api, body: bytes, said: str) -> None:
    status, _, text = error_of(await shared.http.post(URL, content=body))
    assert status == 400
    assert text.startswith(said)


async def test_limits(tmp_path: Path) -> None:
    api = open_api(tmp_path, max_message_requests=2, max_message_bytes=2000, max_line_bytes=1500)
    many = {"requests": [message(f"r{n}") for n in range(3)]}
    assert error_of(await api.http.post(URL, json=many))[2] == "requests: List should have at most 2 items."
    large = {"requests": [message(system="x" * 900)]}
    assert error_of(await api.http.post(URL, json=large))[:2] == (413, "request_too_large")
    larger = json.dumps({"requests": [message(system="x" * 3000)]}).encode()
    assert error_of(await api.http.post(URL, content=chunked(larger)))[:2] == (413, "request_too_large")
    assert api.stored() == []


async def test_a_resend_of_the_sdk_and_a_key_make_no_second_batch(api: Api) -> None:
    api.gateway.down = True
    lost = await api.http.post(URL, json={"requests": [message("sdk")]}, headers={"x-stainless-retry-count": "0"})
    assert error_of(lost)[:2] == (503, "api_error")
    api.gateway.down = False
    (note,) = api.store.list("creates/")
    found = await create(api, message("sdk"), **{"x-stainless-retry-count": "1"})
    assert note.endswith(found["id"].removeprefix("msgbatch_"))
    assert list(api.store.list("creates/")) == []
    first = await create(api, **{"Idempotency-Key": "k"})
    again = await create(api, **{"Idempotency-Key": "k"})
    assert first["id"] == again["id"]
    assert len(api.gateway.created) == 2
    files = len((await api.openai.files.list()).data)
    conflict = await api.http.post(URL, json={"requests": [message("b")]}, headers={"Idempotency-Key": "k"})
    assert error_of(conflict)[:2] == (409, "conflict_error")
    assert len((await api.openai.files.list()).data) == files


async def test_pages_in_both_directions(api: Api) -> None:
    await api.openai.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
    ids = [(await create(api))["id"] for _ in range(5)][::-1]

    async def page(**query: Any) -> tuple[list[str], bool]:
        answer = (await api.http.get(URL, params=query)).json()
        found = [batch["id"] for batch in answer["data"]]
        assert (answer["first_id"], answer["last_id"]) == ((found[0], found[-1]) if found else (None, None))
        return found, answer["has_more"]

    assert await page() == (ids, False)
    assert await page(limit=2) == (ids[:2], True)
    assert await page(limit=2, after_id=ids[1]) == (ids[2:4], True)
    assert await page(limit=2, after_id=ids[3]) == (ids[4:], False)
    assert await page(limit=2, before_id=ids[4]) == (ids[2:4], True)
    assert await page(limit=2, before_id=ids[1]) == (ids[:1], False)
    for query in ("limit=0", "limit=1001", "after_id=msgbatch_x", f"after_id={ids[0]}&before_id={ids[1]}"):
        assert error_of(await api.http.get(f"{URL}?{query}"))[:2] == (400, "invalid_request_error")


async def test_results_of_both_files_in_their_words(api: Api) -> None:
    batch = await create(api, *(message(name) for name in "abcdef"))
    refusal = {"type": "error", "error": {"type": "overloaded_error", "message": "own words"}}
    answer = {"type": "message", "content": [{"type": "text", "text": "é"}]}
    output = add_file(api, "file-out", line("a", 200, answer))
    errors = add_file(
        *(api, "file-err"),
        line("b", 400, {"error": {"message": "no", "type": "x"}}, "x", "no"),
        line("c", 529, refusal, "overloaded_error", "own words"),
        line("d", None, code="request_timeout", message="late"),
        line("e", None, code="batch_cancelled", message="-"),
        line("f", 404, {"error": "gone"}),
    )
    counts = Counts(total=6, completed=1, failed=5, unanswered=1)
    end(api, batch, BatchPhase.CANCELLED, counts=counts, output_file_id=output, error_file_id=errors)
    shown = (await api.http.get(f"{URL}/{batch['id']}")).json()
    assert shown["processing_status"] == "ended"
    assert shown["request_counts"] == {"processing": 0, "succeeded": 1, "errored": 4, "canceled": 1, "expired": 0}
    assert shown["results_url"] == f"{URL}/{batch['id']}/results"
    found = await results(api, batch)
    assert found["a"] == {"type": "succeeded", "message": answer}
    assert found["e"] == {"type": "canceled"}
    errored = {name: result["error"] for name, result in found.items() if result["type"] == "errored"}
    assert errored["b"] == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "no"},
        "request_id": "req_up",
    }
    assert errored["c"] == refusal
    assert errored["d"]["error"] == {"type": "timeout_error", "message": "late"}
    assert errored["f"]["error"] == {"type": "not_found_error", "message": "gone"}


@pytest.mark.parametrize(
    ("phase", "name", "result"),
    [
        (BatchPhase.CANCELLED, "canceled", {"type": "canceled"}),
        (BatchPhase.EXPIRED, "expired", {"type": "expired"}),
        (BatchPhase.FAILED, "errored", None),
    ],
)
async def test_a_batch_that_ended_before_anything_was_sent(
    api: Api, phase: BatchPhase, name: str, result: dict[str, Any] | None
) -> None:
    batch = await create(api, message("a"), message("b"))
    errors = [BatchError(code="model_not_found", message="no such model", line=2)] if phase is BatchPhase.FAILED else []
    end(api, batch, phase, errors=errors)
    counts = (await api.http.get(f"{URL}/{batch['id']}")).json()["request_counts"]
    assert counts == {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0, name: 2}
    found = await results(api, batch)
    if result:
        assert found == {"a": result, "b": result}
    else:
        assert found["b"]["error"]["error"] == {"type": "invalid_request_error", "message": "no such model"}
        assert "no such model" in found["a"]["error"]["error"]["message"]


async def test_files_with_too_few_lines_do_not_pass_for_all_results(api: Api) -> None:
    batch = await create(api, message("a"), message("b"))
    output = add_file(api, "file-out", line("a", 200, {}))
    end(api, batch, BatchPhase.COMPLETED, counts=Counts(total=2, completed=2), output_file_id=output)
    with pytest.raises(RuntimeError, match="response already started"):  # and so the connection is cut
        await api.http.get(f"{URL}/{batch['id']}/results")


async def test_results_that_have_expired(api: Api) -> None:
    batch = await create(api)
    record = end(api, batch, BatchPhase.COMPLETED, counts=Counts(total=1, completed=1), output_file_id="file-gone")
    assert error_of(await api.http.get(f"{URL}/{batch['id']}/results"))[:2] == (404, "not_found_error")
    old = record.spec.model_copy(update={"output_expires_after": 0})
    api.gateway.set_status(BatchRecord(spec=old, status=record.status), record.status)
    shown = (await api.http.get(f"{URL}/{batch['id']}")).json()
    assert (shown["archived_at"], shown["results_url"]) == (shown["ended_at"], None)


async def test_cancel_and_delete(api: Api) -> None:
    batch = await create(api)
    one = f"{URL}/{batch['id']}"
    assert error_of(await api.http.delete(one))[:2] == (400, "invalid_request_error")
    assert error_of(await api.http.get(f"{one}/results"))[:2] == (400, "invalid_request_error")
    canceling = (await api.http.post(f"{one}/cancel")).json()
    assert canceling["processing_status"] == "canceling"
    assert canceling["cancel_initiated_at"]
    output = add_file(api, "file-out", line("a", 200, {}))
    end(api, batch, BatchPhase.COMPLETED, counts=Counts(total=1, completed=1), output_file_id=output)
    assert error_of(await api.http.post(f"{one}/cancel"))[:2] == (400, "invalid_request_error")
    other = await create(api)
    assert (await api.http.delete(one)).json() == {"id": batch["id"], "type": "message_batch_deleted"}
    for method, url in (("GET", one), ("DELETE", one), ("GET", f"{one}/results"), ("POST", f"{one}/cancel")):
        assert error_of(await api.http.request(method, url))[:2] == (404, "not_found_error")
    assert [one["id"] for one in (await api.http.get(URL)).json()["data"]] == [other["id"]]
    assert len((await api.openai.batches.list()).data) == 1
    assert len((await api.openai.files.list()).data) == 1  # of the other
    # Its place in the list stays, for a client that deletes what it lists.
    assert (await api.http.get(URL, params={"after_id": batch["id"]})).json()["data"] == []


async def test_batches_of_other_endpoints_are_none(api: Api) -> None:
    other = await api.openai.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
    for id_ in (other.id, "msgbatch_" + other.id.removeprefix("batch_"), "x", "msgbatch_..", "msgbatch_"):
        assert error_of(await api.http.get(f"{URL}/{id_}"))[:2] == (404, "not_found_error")
    assert error_of(await api.http.post("/v1/messages", json={}))[:2] == (404, "not_found_error")
    assert error_of(await api.http.put(URL))[0] == 405
    doubled = await api.http.get("/v1/v1/messages/batches")
    assert "the base URL of a client has to end with nothing behind the host" in doubled.json()["error"]["message"]


async def test_both_kinds_of_keys(tmp_path: Path) -> None:
    _, key = create_key(tmp_path / "keys.toml", "team")
    api = open_api(tmp_path / "store", KeyFile(tmp_path / "keys.toml"))
    for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
        assert (await api.http.get(URL, headers=headers)).status_code == 200
    for headers in ({}, {"x-api-key": "wrong"}):
        assert error_of(await api.http.get(URL, headers=headers))[:2] == (401, "authentication_error")


async def test_the_store_and_temporal_away(api: Api) -> None:
    api.gateway.down = True
    status, kind, text = error_of(await api.http.post(URL, json={"requests": [message()]}))
    assert (status, kind) == (503, "api_error")
    assert "Temporal" in text


def test_a_line_without_an_id_is_a_result_all_the_same() -> None:
    found = json.loads(result_of(json.dumps(line(None, None, code="line_too_large", message="-")).encode()))  # pyright: ignore[reportArgumentType]
    assert found["custom_id"] is None
    assert found["result"]["error"]["error"]["type"] == "api_error"
