"""What a tenant may use: running batches, queued requests, stored bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from activities.records.catalog import Catalog, FileRecord
from activities.records.keys import content_key
from activities.records.running import RunningBatches
from activities.records.shard_keys import ShardRef, part_key, result_key
from api.http.auth import Caller
from api.http.errors import ApiError
from api.routes import limits as limits_module
from api.routes import stored_bytes
from api.routes.stored_bytes import StoredBytes, form_of
from api.tenants.key_editing import create_key
from api.tenants.keys import KeyFile
from tests.fakes.api import Api, error_of, field, file, form, open_api
from workflows.ids import BatchRef
from workflows.types import BatchError, BatchPhase, BatchRecord, BatchSpec, BatchStatus, ValidateResult

CREATE: dict[str, Any] = {
    "input_file_id": "file-x",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}


def limited(tmp_path: Path, limits: str) -> tuple[Api, dict[str, str]]:
    """An API, and the headers of a tenant with these limits; ``free`` has none."""
    path = tmp_path / "keys.toml"
    _, key = create_key(path, "search")
    with path.open("a") as file:
        file.write(f"[tenants.search]\n{limits}\n")
    return open_api(tmp_path / "store", KeyFile(path)), {"api-key": key}


def spec(number: int = 0, **changes: Any) -> BatchSpec:
    values: dict[str, Any] = {
        "batch_id": f"batch_{number:032x}",
        "tenant": "search",
        "input_file_id": "file-x",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "window_seconds": 86400,
        "created_ms": 1,
        "digest": "d",
        "counts_towards_limits": True,
    }
    return BatchSpec(**{**values, **changes})


def end(api: Api, batch_id: str) -> None:
    catalog = Catalog(api.store)
    record = catalog.get_batch(BatchRef("search", batch_id))
    catalog.save_final(BatchRecord(spec=record.spec, status=BatchStatus(phase=BatchPhase.COMPLETED)))


# Running batches


async def test_one_batch_too_many_is_for_later(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_running_batches = 2")
    made = [(await api.http.post("/v1/batches", json=CREATE, headers=headers)).json()["id"] for _ in range(2)]
    refused = await api.http.post("/v1/batches", json=CREATE, headers=headers)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 60
    error = error_of(refused)
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    assert "organization search. Limit: 2 running batches" in error["message"]
    assert len(api.gateway.created) == 2
    RunningBatches(Catalog(api.store)).remove(BatchRef("search", made[0]))  # as its end does
    assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 200


async def test_a_refused_batch_leaves_nothing(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_running_batches = 1")
    assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 200
    before = api.stored()
    for count in ("0", "1", "2"):  # as the stock client says which try it is
        tried = {**headers, "x-stainless-retry-count": count}
        other = {**CREATE, "metadata": {"not": "the same"}}
        assert (await api.http.post("/v1/batches", json=other, headers=tried)).status_code == 429
    assert api.stored() == before


async def test_many_at_once_are_no_more_than_the_limit(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_running_batches = 3")
    answers = await asyncio.gather(*(api.http.post("/v1/batches", json=CREATE, headers=headers) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 9


async def test_a_repeat_of_a_batch_that_is_there_needs_no_place(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_running_batches = 1")
    with_key = {**headers, "idempotency-key": "k"}
    first = await api.http.post("/v1/batches", json=CREATE, headers=with_key)
    again = await api.http.post("/v1/batches", json=CREATE, headers=with_key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 429
    other = await api.http.post("/v1/batches", json=CREATE, headers={**headers, "idempotency-key": "other"})
    assert other.status_code == 429
    # Nor does it take one when the batch has ended.
    batch_id = first.json()["id"]
    end(api, batch_id)
    running = RunningBatches(Catalog(api.store))
    running.remove(BatchRef("search", batch_id))
    assert (await api.http.post("/v1/batches", json=CREATE, headers=with_key)).json()["status"] == "completed"
    assert running.batches("search") == []
    other = {**CREATE, "completion_window": "24h", "metadata": {"a": "b"}}
    assert (await api.http.post("/v1/batches", json=other, headers=with_key)).status_code == 409
    assert running.batches("search") == []


async def test_batches_that_ended_unseen_do_not_block_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, headers = limited(tmp_path, "max_running_batches = 2")
    running = RunningBatches(Catalog(api.store))
    running.add(BatchRef("search", "batch_" + "0" * 32))  # its API process was killed before it started it
    (await api.http.post("/v1/batches", json=CREATE, headers=headers)).raise_for_status()
    assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 200
    assert sorted(running.batches("search")) == sorted(spec.ref for spec in api.gateway.created)
    end(api, api.gateway.created[0].batch_id)
    # It has just looked, and does not do so for every refusal.
    assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 429
    monkeypatch.setattr(limits_module, "LOOK_SECONDS", 0.0)
    assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 200
    assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 429


async def test_no_order_of_ids_hides_a_batch_that_ended_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(limits_module, "LOOK_AT", 1)
    api, headers = limited(tmp_path, "max_running_batches = 2")
    (await api.http.post("/v1/batches", json=CREATE, headers=headers)).raise_for_status()
    RunningBatches(Catalog(api.store)).add(BatchRef("search", "batch_" + "f" * 32))  # behind the one that runs
    for _ in range(200):
        if (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 200:
            return
    pytest.fail("its place was never free again")


async def test_a_batch_that_could_not_be_started_takes_no_place(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_running_batches = 1")
    api.gateway.down = True
    for _ in range(2):
        assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 503
    api.gateway.down = False
    assert (await api.http.post("/v1/batches", json=CREATE, headers=headers)).status_code == 200


# Queued requests


def checked(total: int) -> ValidateResult:
    return ValidateResult(total=total, model="m", finished_at=7)


def test_queued_requests_are_counted_over_all_running_batches(tmp_path: Path) -> None:
    running = RunningBatches(Catalog(open_api(tmp_path).store))
    assert running.admit(spec(1, max_queued_requests=10), checked(6)).errors == []
    assert running.admit(spec(2, max_queued_requests=10), checked(4)).errors == []
    assert running.admit(spec(2, max_queued_requests=10), checked(4)).errors == []  # a second attempt
    assert running.admit(spec(9, tenant="ads", max_queued_requests=1), checked(1)).errors == []
    failed = running.admit(spec(3, max_queued_requests=10), checked(1))
    (error,) = failed.errors
    assert (error.code, error.param, error.line) == ("token_limit_exceeded", None, None)
    assert error.message == (
        "Enqueued token limit reached for m in organization search. Limit: 10 enqueued requests; running batches have "
        "10, and this batch has 1. Waiting helps: please try again once some in_progress batches have been completed."
    )
    assert (failed.errors_total, failed.finished_at, failed.shards) == (1, 7, [])
    assert running.batches("search") == [spec(1).ref, spec(2).ref]
    running.remove(spec(1).ref)
    assert running.admit(spec(3, max_queued_requests=10), checked(6)).errors == []


def test_a_batch_larger_than_the_limit_alone(tmp_path: Path) -> None:
    running = RunningBatches(Catalog(open_api(tmp_path).store))
    (error,) = running.admit(spec(max_queued_requests=10), checked(11)).errors
    assert error.message.endswith("this batch has 11. Waiting does not help: please divide the batch.")
    assert running.admit(spec(max_queued_requests=11), checked(11)).errors == []
    assert running.admit(spec(2, max_queued_requests=None), checked(10**6)).errors == []


def test_a_batch_that_has_ended_is_not_queued(tmp_path: Path) -> None:
    catalog = Catalog(open_api(tmp_path).store)
    running = RunningBatches(catalog)
    running.admit(spec(1), checked(10))
    ended = BatchStatus(phase=BatchPhase.COMPLETED)
    catalog.save_final(BatchRecord(spec=spec(1), status=ended))
    assert running.admit(spec(2, max_queued_requests=10), checked(10)).errors == []
    assert running.batches("search") == [spec(2).ref]


def test_what_is_not_counted_leaves_no_trace(tmp_path: Path) -> None:
    api = open_api(tmp_path)
    running = RunningBatches(Catalog(api.store))
    assert running.admit(spec(counts_towards_limits=False), checked(3)) == checked(3)
    bad = ValidateResult(errors=[BatchError(code="empty_file", message="")])
    assert running.admit(spec(), bad) == bad
    assert api.stored() == []


# Stored bytes


async def upload(api: Api, headers: dict[str, str], size: int, **more: str) -> Any:
    body, kind = form(field("purpose", "batch"), file(b"x" * size))
    return await api.http.post("/v1/files", content=body, headers={**headers, **kind, **more})


async def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    first = await upload(api, headers, 60)
    assert first.status_code == 200
    before = api.stored()
    refused = await upload(api, headers, 41)
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"
    error = error_of(refused)
    assert (error["type"], error["code"], error["param"]) == ("insufficient_quota", "insufficient_quota", None)
    assert error["message"].endswith(
        "organization search may store 100 bytes and has 60. 41 more do not fit. Waiting does not help: "
        "please delete files that you no longer need."
    )
    assert api.stored() == before
    assert (await upload(api, headers, 40)).status_code == 200
    await api.http.delete(f"/v1/files/{first.json()['id']}", headers=headers)
    assert (await upload(api, headers, 60)).status_code == 200


async def test_a_file_that_cannot_fit_is_refused_by_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    monkeypatch.setattr(api.store, "writer", None)  # never asked for
    refused = await upload(api, headers, 400_000)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_quota")
    assert "may store 100 bytes and has 0. A file of " in error_of(refused)["message"]
    assert "can never be stored: waiting does not help" in error_of(refused)["message"]


async def test_files_that_come_together_do_not_take_the_same_room(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    answers = await asyncio.gather(*(upload(api, headers, 30) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5


async def test_a_repeated_upload_needs_no_room(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    first = await upload(api, headers, 100, **{"idempotency-key": "k"})
    again = await upload(api, headers, 100, **{"idempotency-key": "k"})
    assert (again.status_code, again.json()) == (200, first.json())
    assert (await upload(api, headers, 1, **{"idempotency-key": "other"})).status_code == 429


CREATE_UPLOAD = {"filename": "a", "mime_type": "application/jsonl", "purpose": "batch"}


async def create_upload(api: Api, headers: dict[str, str], size: int) -> Any:
    return await api.http.post("/v1/uploads", json={**CREATE_UPLOAD, "bytes": size}, headers=headers)


async def send_part(api: Api, headers: dict[str, str], upload_id: str, size: int) -> Any:
    body, kind = form(('Content-Disposition: form-data; name="data"; filename="x"', b"x" * size))
    return await api.http.post(f"/v1/uploads/{upload_id}/parts", content=body, headers={**headers, **kind})


async def end_upload(api: Api, headers: dict[str, str], upload_id: str, end: str, body: Any = None) -> Any:
    return await api.http.post(f"/v1/uploads/{upload_id}/{end}", json=body, headers=headers)


async def test_an_upload_in_parts(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    refused = await create_upload(api, headers, 101)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_quota")
    first = (await create_upload(api, headers, 60)).json()["id"]
    before = api.stored()
    refused = await create_upload(api, headers, 60)  # nothing has arrived, but it is to
    assert (refused.status_code, error_of(refused)["code"]) == (429, "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert error_of(refused)["message"].endswith(
        "may store 100 bytes and has 0, and 60 more are reserved by its uploads and running batches. "
        "60 more do not fit now. Please try again once some of these have ended or are cancelled."
    )
    assert api.stored() == before
    second = (await create_upload(api, headers, 30)).json()["id"]
    assert (await upload(api, headers, 11)).status_code == 429
    assert (await upload(api, headers, 10)).status_code == 200
    # Parts take what was reserved for them, and no more than that.
    part = await send_part(api, headers, first, 60)
    assert part.status_code == 200
    before = api.stored()
    assert (await send_part(api, headers, first, 1)).status_code == 429
    assert api.stored() == before
    # A file takes the room that its parts have had, and an upload that is given up leaves its room to others.
    for _ in range(2):
        done = await end_upload(api, headers, first, "complete", {"part_ids": [part.json()["id"]]})
        assert done.status_code == 200
    assert (await upload(api, headers, 1)).status_code == 429
    assert (await end_upload(api, headers, second, "cancel")).status_code == 200
    assert (await upload(api, headers, 31)).status_code == 429
    assert (await upload(api, headers, 30)).status_code == 200


async def test_an_upload_that_has_expired_reserves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    long_ago = time.time_ns() - 2 * 3600 * 10**9
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: long_ago)
        assert (await create_upload(api, headers, 100)).status_code == 200
    assert (await upload(api, headers, 100)).status_code == 200


async def test_uploads_that_are_created_together_do_not_take_the_same_room(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    answers = await asyncio.gather(*(create_upload(api, headers, 30) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5


async def test_a_form_takes_its_room_while_it_arrives(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 1000000")
    body, kind = form(field("purpose", "batch"), file(b"x" * 900_000))
    goes_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:1000]
        await goes_on.wait()
        yield body[1000:]

    length = {"content-length": str(len(body))}
    slow = asyncio.create_task(api.http.post("/v1/files", content=slowly(), headers={**headers, **kind, **length}))
    while (refused := await upload(api, headers, 500_000)).status_code == 200:
        deleted = await api.http.delete(f"/v1/files/{refused.json()['id']}", headers=headers)
        assert deleted.status_code == 200
        await asyncio.sleep(0.01)
    assert "reserved by its uploads" in error_of(refused)["message"]
    goes_on.set()
    assert (await slow).status_code == 200
    refused = await upload(api, headers, 500_000)
    assert "Waiting does not help" in error_of(refused)["message"]


async def test_a_form_of_unknown_length_ends_where_the_room_does(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 3000000")
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        body, _ = form(field("purpose", "batch"), file(b"x"))
        yield body[: body.index(b"x\r\n") + 1]
        for _ in range(100):
            sent += 1 << 20
            yield b"x" * (1 << 20)

    _, kind = form()
    refused = await api.http.post("/v1/files", content=endless(), headers={**headers, **kind})
    assert refused.status_code == 403
    assert api.stored() == []


async def test_answers_of_running_batches_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    shard = ShardRef(spec(1).ref, "cut", 0)
    api.store.put(part_key(shard, "1", 1), b"x" * 20)
    api.store.put(result_key(shard, "1"), b"x" * 30)
    assert (await upload(api, headers, 60)).status_code == 200  # it does not run
    RunningBatches(Catalog(api.store)).add(shard.batch)
    monkeypatch.setattr(stored_bytes, "ANSWERS_SECONDS", 0.0)
    refused = await upload(api, headers, 11)
    assert "has 60, and 50 more are reserved" in error_of(refused)["message"]


async def test_parts_that_come_together_do_not_take_the_same_room(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    made = (await create_upload(api, headers, 90)).json()
    body, kind = form(('Content-Disposition: form-data; name="data"; filename="x"', b"x" * 30))
    url = f"/v1/uploads/{made['id']}/parts"
    answers = await asyncio.gather(*(api.http.post(url, content=body, headers=headers | kind) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 3


async def test_results_count_and_expired_files_do_not(tmp_path: Path) -> None:
    api, headers = limited(tmp_path, "max_stored_bytes = 100")
    catalog = Catalog(api.store)
    now_ms = time.time_ns() // 1_000_000
    record = FileRecord(id="file-a", bytes=1000, created_ms=now_ms, filename="a", purpose="batch_output")
    catalog.save_file("search", record.model_copy(update={"expires_at": now_ms // 1000 - 1}))
    assert (await upload(api, headers, 1)).status_code == 200
    catalog.save_file("search", record.model_copy(update={"id": "file-b", "bytes": 99}))
    assert (await upload(api, headers, 1)).status_code == 429


async def test_each_record_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, _ = limited(tmp_path, "max_stored_bytes = 100")
    catalog = Catalog(api.store)
    limits = KeyFile(tmp_path / "keys.toml").current().limits("search")
    stored = StoredBytes(catalog)
    read: list[str] = []
    real = catalog.find_file

    def find_file(tenant: str, file_id: str) -> FileRecord | None:
        read.append(file_id)
        return real(tenant, file_id)

    monkeypatch.setattr(catalog, "find_file", find_file)
    record = FileRecord(id="file-0", bytes=10, created_ms=0, filename="a", purpose="batch")
    for number in range(3):
        catalog.save_file("search", record.model_copy(update={"id": f"file-{number}"}))
        async with stored.reserve(form_of(Caller("search", limits)), 10):
            pass
    assert read == ["file-0", "file-1", "file-2"]
    # Under an idempotency key a file that expired is followed by one of the same id.
    catalog.save_file("search", record.model_copy(update={"bytes": 81, "created_ms": 9}))
    with pytest.raises(ApiError):
        async with stored.reserve(form_of(Caller("search", limits)), 1):
            pass


async def test_a_retry_takes_a_place_as_a_create_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, headers = limited(tmp_path, "max_running_batches = 1")
    catalog = Catalog(api.store)
    for file_id in ("file-x", "file-e"):
        record = FileRecord(id=file_id, bytes=0, created_ms=1, filename="f", purpose="batch")
        api.store.put(content_key("search", file_id), b"")
        catalog.save_file("search", record)
    first = (await api.http.post("/v1/batches", json=CREATE, headers=headers)).json()["id"]
    spec = catalog.get_batch(BatchRef("search", first)).spec
    status = BatchStatus(phase=BatchPhase.COMPLETED, error_file_id="file-e")
    catalog.save_final(BatchRecord(spec=spec, status=status))
    running = (await api.http.post("/v1/batches", json=CREATE, headers=headers)).json()["id"]
    url = f"/v1/batches/{first}"
    refused = await api.http.post(f"{url}/retry", headers=headers)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert (await api.http.get(url, headers=headers)).json()["retried_by"] is None
    end(api, running)
    monkeypatch.setattr(limits_module, "LOOK_SECONDS", 0.0)
    retried = await api.http.post(f"{url}/retry", headers=headers)
    assert retried.status_code == 200
    assert (await api.http.get(url, headers=headers)).json()["retried_by"] == retried.json()["id"]
    assert RunningBatches(catalog).batches("search") == [BatchRef("search", retried.json()["id"])]
