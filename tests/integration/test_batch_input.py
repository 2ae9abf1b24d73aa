"""Bad input: a batch that failed and says why, of which nothing reached the engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, Finished, Stack, request, requests
from workflows.ids import BatchRef


def check_failed(it: Stack, finished: Finished) -> list[tuple[int | None, str | None, str | None]]:
    """What holds for each failed batch; its errors as line, code and param."""
    batch = finished.batch
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.failed_at >= batch.created_at
    assert (batch.in_progress_at, batch.finalizing_at, batch.completed_at) == (None, None, None)
    assert finished.counts == (0, 0, 0)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert it.engine.counters().received_total == 0
    assert batch.errors
    assert batch.errors.object == "list"
    assert batch.errors.data
    return [(error.line, error.code, error.param) for error in batch.errors.data]


async def test_every_bad_line_is_reported(stack: MakeStack) -> None:
    it = await stack()
    no_id = {name: value for name, value in request("x").items() if name != "custom_id"}
    lines: list[dict[str, Any] | str] = [
        request("good"),
        "{not json",
        "",
        no_id,
        {**request("get"), "method": "GET"},
        request("other", "/v1/embeddings"),
        request("good"),
        request("streams", stream=True),
        request("no-messages", messages=...),
        request("no-model", model=...),
        request("odd", messages="hello"),
        request("unknown", model="gpt-9"),
        {**request("bodyless"), "body": "text"},
        '{"custom_id":"\\q"}',
    ]
    finished = await it.run(lines)
    assert check_failed(it, finished) == [
        (2, "invalid_json_line", None),
        (4, "missing_required_parameter", "custom_id"),
        (5, "invalid_value", "method"),
        (6, "invalid_url", "url"),
        (7, "duplicate_custom_id", "custom_id"),
        (8, "streaming_unsupported", "body.stream"),
        (9, "missing_required_parameter", "body.messages"),
        (10, "missing_required_parameter", "body.model"),
        (11, "invalid_type", "body.messages"),
        (12, "model_not_found", "body.model"),
        (13, "invalid_type", "body"),
        (14, "invalid_json_line", None),
    ]
    # Known and listed as failed, now and when Temporal has forgotten it.
    assert [batch.status async for batch in it.openai.batches.list()] == ["failed"]
    record = it.catalog.get_final(BatchRef("default", finished.batch.id))
    assert record
    assert record.status.errors_total == 12


async def test_an_unknown_file_fails_the_batch(stack: MakeStack) -> None:
    it = await stack()
    batch = await it.create("file-doesnotexist")
    assert batch.status == "validating"
    finished = await it.finished(batch.id)
    assert check_failed(it, finished) == [(None, "invalid_request", "file_id")]
    assert finished.batch.errors
    assert "Cannot find file file-doesnotexist" in str(finished.batch.errors.data)


@pytest.mark.parametrize("file_id", ["../../../etc/passwd", "file-\x00", "x" * 200, "file-ü"])
async def test_a_file_id_that_cannot_be_is_an_unknown_one(stack: MakeStack, file_id: str) -> None:
    it = await stack()
    finished = await it.finished((await it.create(file_id)).id)
    assert check_failed(it, finished) == [(None, "invalid_request", "file_id")]


async def test_a_file_deleted_before_it_is_read(stack: MakeStack) -> None:
    it = await stack(worker=False)
    file_id = await it.upload(requests(2))
    batch = await it.create(file_id)
    await it.openai.files.delete(file_id)
    await it.start_worker()
    assert check_failed(it, await it.finished(batch.id)) == [(None, "invalid_request", "file_id")]


async def test_files_that_are_no_batch_input(stack: MakeStack) -> None:
    it = await stack(max_requests=3, max_input_bytes=5000)
    other = await it.openai.files.create(file=("in.jsonl", b"{}\n"), purpose="user_data")
    wrong_purpose = await it.finished((await it.create(other.id)).id)
    assert check_failed(it, wrong_purpose) == [(None, "invalid_request", "file_id")]
    assert check_failed(it, await it.run(b"\n \r\n\n")) == [(None, "empty_file", None)]
    assert check_failed(it, await it.run(requests(4))) == [(None, "too_many_tasks", None)]
    too_large = await it.run([request("x", padding="y" * 5000)])
    assert check_failed(it, too_large) == [(None, "invalid_request", "file_id")]
    inputs = await it.run([request("x", "/v1/embeddings", input=["a"] * 4)], "/v1/embeddings")
    assert check_failed(it, inputs) == [(None, "too_many_tasks", None)]


async def test_lines_that_are_not_utf8_or_endless(stack: MakeStack) -> None:
    it = await stack()
    good = json.dumps(request("good")).encode()
    endless = json.dumps(request("endless", padding="y" * 20_000_000)).encode()  # and a request as any other
    latin = '{"custom_id":"é","method":"POST"}'.encode("latin-1")
    finished = await it.run(b"\n".join([good, latin, endless, good.replace(b"good", b"\xff"), good]))
    assert check_failed(it, finished) == [
        (2, "invalid_json_line", None),
        (5, "duplicate_custom_id", "custom_id"),
    ]


async def test_the_first_hundred_errors_are_listed_and_the_total_is_said(stack: MakeStack) -> None:
    it = await stack()
    finished = await it.run(["nope"] * 150)
    assert [line for line, _, _ in check_failed(it, finished)] == list(range(1, 101))
    assert finished.batch.errors
    assert finished.batch.errors.data
    assert "150 errors" in (finished.batch.errors.data[-1].message or "")


async def test_unknown_models_may_be_left_to_the_engine(stack: MakeStack) -> None:
    it = await stack(unknown_model="line")
    finished = await it.run([request("a"), request("b", model="gpt-9")])
    assert finished.batch.status == "completed"
    assert finished.batch.model is None  # there are two
    assert finished.counts == (2, 1, 1)
    assert finished.error_codes == {"b": "model_not_found"}


async def test_mixed_models_may_be_refused(stack: MakeStack) -> None:
    it = await stack(unknown_model="line", mixed_models=False)
    finished = await it.run([request("a"), request("b", model="other"), request("c")])
    assert check_failed(it, finished) == [(2, "mismatched_model", "body.model")]


async def test_an_endpoint_that_the_input_does_not_fit(stack: MakeStack) -> None:
    it = await stack()
    finished = await it.run(requests(2, "/v1/embeddings"), CHAT)
    assert check_failed(it, finished) == [(1, "invalid_url", "url"), (2, "invalid_url", "url")]


async def test_an_engine_whose_model_list_does_not_come(stack: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await closed.wait()
        writer.close()

    closed = asyncio.Event()
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        # Validation waits longer for the list than a worker may be silent.
        it = await stack(upstream_url=f"http://127.0.0.1:{port}/v1", heartbeat_timeout=1.5)
        monkeypatch.setattr("activities.upstreams.client.MODEL_LIST_TIMEOUT", 2.5)
        batch_id = await it.submit([request("a", model="who-knows")])
        batch = await it.until(batch_id, lambda batch: batch.status != "validating")
        assert batch.status == "in_progress"  # an engine that cannot be asked is not guessed about
        await it.openai.batches.cancel(batch_id)
        await it.finished(batch_id)
        closed.set()
