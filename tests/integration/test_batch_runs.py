"""A batch from upload to results, when nothing goes wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types import Batch
from temporalio.client import WorkflowHandle

from activities.records.catalog import Catalog
from activities.records.create_notes import CreateNotes
from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, Finished, Stack, request, requests
from workflows.ids import BatchRef

BATCH_KEYS = {
    *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status"),
    *("output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at"),
    *("completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage"),
    *("metadata", "error_summary", "retried_by", "progress"),
}


async def activity_ids(workflow: WorkflowHandle[Any, Any]) -> dict[str, str]:
    """The activities that a workflow has scheduled, with their summaries."""
    found: dict[str, str] = {}
    async for event in workflow.fetch_history_events():
        if event.HasField("activity_task_scheduled_event_attributes"):
            found[event.activity_task_scheduled_event_attributes.activity_id] = json.loads(
                event.user_metadata.summary.data
            )
    return found


def check_order_of_times(batch: Batch) -> None:
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert None not in times
    assert times == sorted(time or 0 for time in times)


def check_success_lines(finished: Finished) -> None:
    for line in finished.output:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["id"].startswith("batch_req_")
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"]
        assert line["custom_id"] in json.dumps(line["response"]["body"], ensure_ascii=False)
    assert len({line["id"] for line in finished.output}) == len(finished.output)


async def test_a_small_batch_is_one_activity_per_request(stack: MakeStack) -> None:
    it = await stack()
    lines: list[dict[str, Any] | str] = [*requests(12), "", request("späte ☕")]
    file_id = await it.upload(lines)
    created = await it.create(file_id, metadata={"team": "evals"})
    assert set(created.model_dump()) == BATCH_KEYS
    assert created.status == "validating"
    assert created.expires_at == created.created_at + 24 * 3600
    assert created.usage
    assert created.usage.total_tokens == 0

    finished = await it.finished(created.id)
    batch = finished.batch
    assert set(batch.model_dump()) == BATCH_KEYS
    assert batch.status == "completed"
    assert finished.counts == (13, 13, 0)
    assert (batch.model, batch.metadata, batch.input_file_id) == ("fake", {"team": "evals"}, file_id)
    assert batch.errors is None
    assert batch.error_file_id is None
    check_order_of_times(batch)
    check_success_lines(finished)
    assert finished.answered == [f"r-{n}" for n in range(12)] + ["späte ☕"]
    assert batch.usage
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (
        13 * 20,
        13 * 10,
        13 * 30,
    )

    ids = await activity_ids(it.workflow(batch.id))
    # Line 13 is blank; physical lines count.
    expected = {f"line-{n + 1}": f"r-{n}" for n in range(12)} | {"line-14": "späte ☕"}
    assert {key: value for key, value in ids.items() if key.startswith("line-")} == expected
    assert set(ids) - set(expected) == {"validate", "write-files", "close"}
    assert all(count == 1 for count in it.engine.counters().received.values())


async def test_the_files_of_a_batch_are_listed(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=400, match="r-1")
    finished = await it.run(requests(2))
    batch = finished.batch
    assert batch.output_file_id
    assert batch.error_file_id
    listed = [file async for file in it.openai.files.list(purpose="batch_output")]
    assert {file.id for file in listed} == {batch.output_file_id, batch.error_file_id}
    for file in listed:
        content = await it.download(file.id)
        assert (file.purpose, file.status, file.bytes) == ("batch_output", "processed", len(content))
        kind = "output" if file.id == batch.output_file_id else "error"
        assert file.filename == f"{batch.id}_{kind}.jsonl"
        assert file.expires_at == file.created_at + 30 * 24 * 3600
    assert [one.id async for one in it.openai.batches.list()] == [batch.id]
    # What only a running batch needs is gone: one more copy of input and output would double the disk.
    left = sorted(key.rsplit("/", 1)[1] for key in it.store.list(f"batches/default/{batch.id}/"))
    assert left == ["created.json", "record.json", "running.json"]


async def test_a_large_batch_runs_in_groups(stack: MakeStack) -> None:
    it = await stack()
    finished = await it.run(requests(1200))
    assert finished.batch.status == "completed"
    assert finished.counts == (1200, 1200, 0)
    assert finished.answered == [f"r-{n}" for n in range(1200)]
    check_success_lines(finished)
    assert finished.batch.usage
    assert finished.batch.usage.total_tokens == 1200 * 30
    ids = await activity_ids(it.workflow(finished.batch.id))
    assert {key: value for key, value in ids.items() if key.startswith("shard-")} == {
        f"shard-{n}": f"lines {32 * n + 1}–{min(32 * n + 32, 1200)}: r-{32 * n} … r-{min(32 * n + 31, 1199)}"
        for n in range(38)
    }
    counters = it.engine.counters()
    assert counters.received_total == 1200
    assert counters.max_in_flight <= it.settings.auto_in_flight_ceiling


@pytest.mark.parametrize(
    ("endpoint", "usage"),
    [
        (CHAT, (20, 0, 10, 0)),
        ("/v1/completions", (20, 0, 10, 0)),
        ("/v1/embeddings", (20, 0, 0, 0)),
        ("/v1/responses", (20, 4, 10, 2)),
    ],
)
async def test_endpoints(stack: MakeStack, endpoint: str, usage: tuple[int, int, int, int]) -> None:
    it = await stack()
    finished = await it.run(requests(3, endpoint), endpoint)
    assert finished.batch.status == "completed"
    assert finished.batch.endpoint == endpoint
    assert finished.answered == ["r-0", "r-1", "r-2"]
    check_success_lines(finished)
    summed = finished.batch.usage
    assert summed
    assert (
        summed.input_tokens,
        summed.input_tokens_details.cached_tokens,
        summed.output_tokens,
        summed.output_tokens_details.reasoning_tokens,
    ) == tuple(3 * tokens for tokens in usage)


async def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_line_end(stack: MakeStack) -> None:
    it = await stack()
    lines = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in requests(3))
    finished = await it.run(b"\xef\xbb\xbf" + lines.encode())
    assert finished.answered == ["r-0", "r-1", "r-2"]


async def test_bodies_travel_as_their_own_bytes(stack: MakeStack) -> None:
    seen: list[bytes] = []
    answer = (
        '{"id" : "x",\r\n  "vendor": {"π": 1.10, "big": 12345678901234567890123, "e": 1E2},\n'
        '"dup": 1, "dup": 2, "text": "caf\\u00e9 \U0001f600 </script>", "usage": {"prompt_tokens": 3, "odd": null}}\n'
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            length = int(next((h.split(b":")[1] for h in head if h.lower().startswith(b"content-length")), b"0"))
            seen.append(await reader.readexactly(length))
            body = answer.encode() if length else b'{"object":"list","data":[{"id":"fake"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nx-request-id: up-1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        it = await stack(upstream_url=f"http://127.0.0.1:{port}/v1")
        body = '{ "model":"fake",  "messages":[ {"role":"user","content":"\\u00fc ü"} ], "temperature":1.0, "x":{} }'
        line = f'{{"url":"{CHAT}","method":"POST","extra":[1],"body":{body},"custom_id":"\\u0061b"}}'
        finished = await it.run(line.encode())
        await it.stop_worker()
    assert finished.batch.status == "completed"
    assert [sent for sent in seen if sent] == [body.encode()]
    flat = answer.replace("\r", " ").replace("\n", " ").strip().replace("π", "\\u03c0").replace("😀", "\\ud83d\\ude00")
    assert f'"response":{{"status_code":200,"request_id":"up-1","body":{flat}}},"error":null}}\n'.encode() in (
        finished.raw_output
    )
    assert b'"custom_id":"\\u0061b"' in finished.raw_output
    assert finished.batch.usage
    assert finished.batch.usage.input_tokens == 3
    assert finished.raw_output.count(b"\n") == 1


async def _head(reader: asyncio.StreamReader) -> list[bytes]:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    except asyncio.IncompleteReadError:
        return []


WHEN = (
    *("created_at", "expires_at", "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
    *("cancelling_at", "cancelled_at"),
)
FILES = ("output_file_id", "error_file_id")


def is_set(batch: Batch) -> set[str]:
    """Times and files that are not null, but for the two times that always are there."""
    return {name for name in (*WHEN, *FILES) if getattr(batch, name) is not None} - {"created_at", "expires_at"}


def check_order(batch: Batch, *names: str) -> None:
    times = [batch.created_at, *(getattr(batch, name) for name in names)]
    assert times == sorted(times)
    assert batch.expires_at
    assert batch.expires_at - batch.created_at in (2, 24 * 3600)


async def half_done(it: Stack, window: str) -> str:
    it.script(mode="hang", match="hangs")
    batch_id = await it.submit([request("ok-0"), request("hangs-1")], window=window)
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 1)
    return batch_id


async def test_a_completed_batch_and_its_model_and_usage_on_the_way(stack: MakeStack) -> None:
    it = await stack(worker=False)
    created = await it.create(await it.upload(requests(2)))
    batch_id = created.id
    assert (is_set(created), created.model, created.status) == (set(), None, "validating")
    assert created.usage
    assert created.usage.total_tokens == 0
    assert created.request_counts
    assert created.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    it.script(mode="hang", match="r-1")
    await it.start_worker()
    running = await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 1)
    assert (is_set(running), running.model, running.status) == ({"in_progress_at"}, "fake", "in_progress")
    assert running.request_counts
    assert running.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 0}
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)

    it.script()
    batch = (await it.run(requests(2))).batch
    assert is_set(batch) == {"in_progress_at", "finalizing_at", "completed_at", "output_file_id"}
    check_order(batch, "in_progress_at", "finalizing_at", "completed_at")
    assert batch.model == "fake"


async def test_a_batch_that_fails_its_validation(stack: MakeStack) -> None:
    it = await stack()
    finished = await it.run([request("ok"), "no json"])
    batch = finished.batch
    assert (batch.status, is_set(batch), finished.counts) == ("failed", {"failed_at"}, (0, 0, 0))
    check_order(batch, "failed_at")
    assert batch.errors
    assert batch.model is None


async def test_an_expired_batch(stack: MakeStack) -> None:
    it = await stack()
    finished = await it.finished(await half_done(it, "2s"))
    batch = finished.batch
    assert is_set(batch) == {"in_progress_at", "finalizing_at", "expired_at", *FILES}
    check_order(batch, "in_progress_at", "finalizing_at", "expired_at")
    assert (batch.status, finished.counts, batch.errors) == ("expired", (2, 1, 1), None)
    assert finished.error_codes == {"hangs-1": "batch_expired"}


async def test_a_batch_that_is_cancelled_mid_run(stack: MakeStack) -> None:
    it = await stack()
    batch_id = await half_done(it, "24h")
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    batch = finished.batch
    assert is_set(batch) == {"in_progress_at", "cancelling_at", "finalizing_at", "cancelled_at", *FILES}
    check_order(batch, "in_progress_at", "cancelling_at", "finalizing_at", "cancelled_at")
    assert (batch.status, finished.counts, batch.errors) == ("cancelled", (2, 1, 1), None)
    assert finished.error_codes == {"hangs-1": "batch_cancelled"}


async def test_a_batch_that_is_cancelled_before_it_starts(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(2))
    assert (await it.openai.batches.cancel(batch_id)).status == "cancelling"
    await it.start_worker()
    finished = await it.finished(batch_id)
    batch = finished.batch
    assert (is_set(batch), finished.counts) == ({"cancelling_at", "cancelled_at"}, (0, 0, 0))
    check_order(batch, "cancelling_at", "cancelled_at")
    assert it.engine.counters().received_total == 0


async def test_result_files_expire_counted_from_their_creation(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=400, match="bad")
    policy: Any = {"anchor": "created_at", "seconds": 7200}
    batch = await it.create(await it.upload([request("ok"), request("bad")]), output_expires_after=policy)
    finished = (await it.finished(batch.id)).batch
    for file_id in (finished.output_file_id, finished.error_file_id):
        assert file_id
        file = await it.openai.files.retrieve(file_id)
        assert file.expires_at == file.created_at + 7200
        assert finished.finalizing_at
        assert file.created_at >= finished.finalizing_at


async def test_strict_error_lines_of_a_run(stack: MakeStack) -> None:
    it = await stack(strict_error_lines=True)
    it.script(mode="status", status=400, match="bad")
    finished = await it.run([request("ok"), request("bad")])
    (line,) = finished.errors
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert line["error"] is None
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["message"]


async def test_a_retry_of_the_stock_client_makes_no_second_batch(stack: MakeStack) -> None:
    """Its first try is started and its answer lost, as by a proxy that gives up."""
    it = await stack()
    file_id = await it.upload(requests(2))
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    first = await it.http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "0"})
    batch_id = first.json()["id"]
    spec = (await asyncio.to_thread(Catalog(it.store).get_batch, BatchRef("default", batch_id))).spec
    # As it stays where the client has gone before its answer: an answer that was sent takes the note away.
    await asyncio.to_thread(CreateNotes(it.store).add, spec, 0)
    again = await it.http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "1"})
    assert again.json()["id"] == batch_id
    late = await it.http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "1"})
    assert late.json()["id"] != batch_id  # whose first try never arrived
    assert (await it.finished(batch_id)).counts == (2, 2, 0)
    assert (await it.finished(late.json()["id"])).counts == (2, 2, 0)
