"""What an operator sees in Temporal, and what nobody may find there."""

from __future__ import annotations

import json

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata

from activities.upstreams import retry_delay
from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, request, requests, until
from workflows.contract import ENDPOINT_ATTRIBUTE, MEMO_STATUS, STATUS_ATTRIBUTE, TENANT_ATTRIBUTE
from workflows.types import BatchMemo


async def test_a_batch_shows_its_story(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="r-3")
    batch_id = await it.submit(requests(4))
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 3)
    workflow = it.workflow(batch_id)
    description = await workflow.describe()
    assert description.workflow_type == "Batch"
    assert await description.static_summary() == f"{CHAT} · 4 lines · window 24h"
    async for event in workflow.fetch_history_events(page_size=1):
        (given,) = event.workflow_execution_started_event_attributes.input.payloads
        shown = json.loads(given.data)
        assert list(shown)[:4] == ["batch_id", "tenant", "input_file_id", "endpoint"]
        assert shown["settings"]["max_attempts"] == it.settings.max_attempts
        assert not shown["settings"].keys() & shown.keys()
        assert len(shown) <= 16  # a person reads it
        break
    attributes = description.typed_search_attributes
    assert attributes[TENANT_ATTRIBUTE] == "default"
    assert attributes[ENDPOINT_ATTRIBUTE] == CHAT
    assert attributes[STATUS_ATTRIBUTE] == "in_progress"
    memo = await description.memo_value(MEMO_STATUS, type_hint=BatchMemo)
    assert (memo.phase, memo.counts.total, memo.counts.completed) == ("in_progress", 4, 3)
    assert (memo.finished_shards, memo.model) == ("0-2", "fake")
    details = (await workflow.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)).current_details
    assert "**in_progress**" in details
    for row in (f"| endpoint | `{CHAT}` |", "| requests | 4 |", "| completed | 3 |", "| completion window | 24h |"):
        assert row in details

    async def listed() -> list[str]:
        query = f"BatchStatus = 'in_progress' AND BatchTenant = 'default' AND WorkflowId = '{batch_id}'"
        return [one.id async for one in it.temporal.list_workflows(query)]

    assert await until(listed, "visibility") == [batch_id]

    it.script()
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)
    assert await it.end_of_run(batch_id) == ("CANCELED", "")
    description = await workflow.describe()
    assert description.typed_search_attributes[STATUS_ATTRIBUTE] == "cancelled"
    memo = await description.memo_value(MEMO_STATUS, type_hint=BatchMemo)
    assert (memo.phase, memo.counts.completed, memo.counts.failed) == ("cancelled", 3, 1)
    details = (await workflow.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)).current_details
    assert "**cancelled**" in details


async def test_how_a_batch_ended_is_the_status_of_its_workflow(stack: MakeStack) -> None:
    it = await stack()
    completed = await it.run(requests(2))
    failed = await it.run(["{", *requests(1), "{"])
    it.script(mode="hang", match="r-1")
    expired = await it.run(requests(2), window="2s")
    ends = [await it.end_of_run(one.batch.id) for one in (completed, failed, expired)]
    assert ends == [
        ("COMPLETED", ""),
        ("FAILED", "This line is not parseable as valid JSON. (line 1) And 1 more errors."),
        ("FAILED", "The completion window of 2s ended: 1 of 2 requests completed."),
    ]
    attributes = [(await it.workflow(one.batch.id).describe()).typed_search_attributes for one in (failed, expired)]
    assert [one[STATUS_ATTRIBUTE] for one in attributes] == ["failed", "expired"]


async def test_why_requests_failed_is_in_the_results_of_their_activities(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=400, match="r-1")
    batch_ids = [(await it.run(requests(count))).batch.id for count in (2, 60)]
    found: list[set[str]] = []
    for batch_id in batch_ids:
        events = (await it.workflow(batch_id).fetch_history()).events
        completed = [event.activity_task_completed_event_attributes.result.payloads for event in events]
        results = [json.loads(payloads[0].data) for payloads in completed if payloads]
        found.append({result["failures"] for result in results if result.get("failures")})
    assert found == [{"1 × HTTP 400 Bad Request"}, {"11 × HTTP 400 Bad Request"}]


async def test_no_text_of_client_or_engine_is_in_the_history(stack: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_delay, "ALONE_SECONDS", 1.0)
    it = await stack(upstream_api_key="upstream-secret-key", max_attempts=2)
    prompt, system = "PROMPT-CANARY", "SYSTEM-CANARY"
    it.script(mode="status", status=500, match="poison")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    good = await it.run([request(name, messages=messages) for name in ("ok-1", "poison-2", "ok-3")])
    bad = await it.run(
        [request("line", messages=messages), {**request("line"), "url": "/v1/URL-CANARY"}, "{JSON-CANARY"]
    )
    assert (good.counts, bad.batch.status) == ((3, 2, 1), "failed")
    assert b"lorem ipsum" in good.raw_output
    assert b"told to refuse" in good.raw_errors
    secrets = (prompt, system, "JSON-CANARY", "lorem ipsum", "told to refuse", "upstream-secret", "client-secret")
    for batch in (good.batch, bad.batch):
        history = await it.workflow(batch.id).fetch_history()
        # In their binary form, where payloads are as they are and not in base64.
        raw = b"".join(event.SerializeToString() for event in history.events)
        assert batch.input_file_id.encode() in raw
        for secret in secrets:
            assert secret.encode() not in raw, secret
    described = await it.workflow(good.batch.id).describe()
    assert all(secret.encode() not in described.raw_description.SerializeToString() for secret in secrets)


async def test_history_stays_small(stack: MakeStack) -> None:
    it = await stack(max_in_flight=64)
    finished = await it.run(requests(2000))
    workflow = it.workflow(finished.batch.id)
    shards = (await workflow.result())["shards_total"]
    info = (await workflow.describe()).raw_description.workflow_execution_info
    assert 2000 / 32 <= shards <= 2000 / 16
    # Three events of its activity, and three of a workflow task where no other shard ends at the same time.
    assert info.history_length < 40 + 6 * shards
    assert info.history_size_bytes < 2_000 * shards
    assert json.loads((await workflow.fetch_history()).to_json())
