"""SPEC.md section 2, what test_api_files.py does not hold: docs/contract.md says which test holds which rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from activities.catalog import Catalog, FileRecord, content_key
from tests.fakes.api import Api, error_of, open_api
from workflows.types import BatchPhase, BatchStatus

PURPOSES: tuple[Any, ...] = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path)


def save(api: Api, file_id: str, **changes: Any) -> str:
    record = FileRecord(id=file_id, bytes=3, created_ms=7000, filename="f", purpose="batch")
    api.store.put(content_key("default", record.id), b"abc")
    Catalog(api.store).save_file("default", record.model_copy(update=changes))
    return record.id


async def test_2_files_of_every_purpose_can_be_downloaded(api: Api) -> None:
    for purpose in PURPOSES:
        created = await api.openai.files.create(file=("x", b"abc"), purpose=purpose)
        assert (await api.openai.files.content(created.id)).content == b"abc"
    assert (await api.openai.files.content(save(api, "file-r", purpose="batch_output"))).content == b"abc"


@pytest.mark.parametrize(
    ("name", "content"), [("in.txt", b"{}"), ("upload", b"no json"), ("in.jsonl", b""), ("in.jsonl", b"\xff\x00")]
)
async def test_2_any_name_and_content_is_taken_and_left_to_the_batch(api: Api, name: str, content: bytes) -> None:
    created = await api.openai.files.create(file=(name, content), purpose="batch")
    assert (created.filename, created.bytes, created.status) == (name, len(content), "processed")


async def test_2_content_is_sent_at_once_whatever_the_client_accepts(api: Api) -> None:
    url = f"/v1/files/{save(api, 'file-1')}/content"
    for accept in ("application/binary", "text/html", "application/json", "*/*"):
        response = await api.http.get(url, headers={"accept": accept})
        assert (response.status_code, response.content) == (200, b"abc")
        assert response.headers["content-type"] == "application/octet-stream"


async def test_2_results_are_listed_by_their_purpose(api: Api) -> None:
    save(api, "file-in")
    for name in ("file-o", "file-e"):
        save(api, name, purpose="batch_output")
    assert {each.id async for each in api.openai.files.list(purpose="batch_output")} == {"file-o", "file-e"}
    assert [each.id async for each in api.openai.files.list(purpose="batch")] == ["file-in"]
    assert [each.id async for each in api.openai.files.list(purpose="no such purpose")] == []


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_2_pages_of_one_walk_over_files_of_one_moment(api: Api, order: Any) -> None:
    names = [save(api, f"file-{number}", created_ms=7000 + number // 3) for number in range(6)]
    seen = [each.id async for each in api.openai.files.list(limit=1, order=order)]
    assert sorted(seen) == names
    times = [int(name.removeprefix("file-")) // 3 for name in seen]
    assert times == sorted(times, reverse=order == "desc")


async def test_2_the_last_page_says_that_it_is_the_last(api: Api) -> None:
    for number in range(2):
        save(api, f"file-{number}", created_ms=number * 1000)
    page = (await api.http.get("/v1/files?limit=1&after=file-1")).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("file-0", "file-0", False)
    page = (await api.http.get("/v1/files?limit=1&after=file-0")).json()
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_2_after_a_file_that_was_deleted_is_400(api: Api) -> None:
    """Not the first page again: a client that deletes what it lists would go round for ever."""
    for number in range(3):
        save(api, f"file-{number}", created_ms=number * 1000)
    first = await api.openai.files.list(limit=1)
    await api.openai.files.delete(first.data[0].id)
    with pytest.raises(openai.BadRequestError) as caught:
        await first.get_next_page()
    assert caught.value.param == "after"


async def test_2_a_result_file_may_be_deleted_and_the_batch_keeps_its_id(api: Api) -> None:
    batch = await api.openai.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
    view = await api.gateway.find("default", batch.id)
    api.gateway.set_status(
        view.record, BatchStatus(phase=BatchPhase.COMPLETED, output_file_id=save(api, "file-o", purpose="batch_output"))
    )
    assert (await api.openai.files.delete("file-o")).deleted
    assert (await api.openai.batches.retrieve(batch.id)).output_file_id == "file-o"
    response = await api.http.get("/v1/files/file-o/content")
    assert response.status_code == 404
    assert error_of(response)["message"] == "No such File object: file-o"
    assert (await api.http.delete("/v1/files/file-o")).status_code == 404
