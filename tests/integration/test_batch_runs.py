"""A batch from upload to results, when nothing goes wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types import Batch
from temporalio.client import WorkflowHandle

from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, Finished, request, requests

BATCH_KEYS = {
    *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status"),
    *("output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at"),
    *("completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage"),
    *("metadata", "progress"),
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
    assert set(ids) - set(expected) == {"validate", "write-files"}
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
        f"shard-{n}": f"shard {n + 1}/12, 100 requests" for n in range(12)
    }
    counters = it.engine.counters()
    assert counters.received_total == 1200
    assert counters.max_in_flight <= it.settings.max_in_flight


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
    flat = answer.replace("\r", " ").replace("\n", " ").strip()
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
