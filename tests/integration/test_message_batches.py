"""Anthropic's Message Batches API over a real workflow: one batch, seen from both sides."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, until

URL = "/v1/messages/batches"


def message(custom_id: str, **params: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"say {custom_id}"}]
    body = {"model": "fake", "max_tokens": 10, "user": custom_id, "messages": messages}
    return {"custom_id": custom_id, "params": body | params}


async def create(it: Stack, *requests: dict[str, Any]) -> str:
    response = await it.http.post(URL, json={"requests": requests})
    assert response.status_code == 200, response.text
    return response.json()["id"]


async def ended(it: Stack, batch_id: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        batch = (await it.http.get(f"{URL}/{batch_id}")).json()
        return batch if batch["processing_status"] == "ended" else None

    batch = await until(look, "the end of a message batch")
    assert batch
    return batch


async def results(it: Stack, batch: dict[str, Any]) -> dict[str, Any]:
    text = (await it.http.get(batch["results_url"])).text
    return {line["custom_id"]: line["result"] for line in map(json.loads, text.splitlines())}


async def test_the_life_of_a_message_batch(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=400, match="b")
    batch_id = await create(it, *(message(name) for name in "abc"))
    batch = await ended(it, batch_id)
    assert batch["request_counts"] == {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0}
    found = await results(it, batch)
    assert [found[name]["type"] for name in "abc"] == ["succeeded", "errored", "succeeded"]
    assert "a" in found["a"]["message"]["content"][0]["text"]
    assert found["b"]["error"]["error"]["type"] == "invalid_request_error"
    (ours,) = (await it.openai.batches.list()).data
    assert (ours.status, ours.usage.input_tokens if ours.usage else 0) == ("completed", 40)
    # Neither Temporal, which still knows the run, nor the janitor brings it back.
    assert (await it.http.delete(f"{URL}/{batch_id}")).status_code == 200
    await it.run_janitor(ours.id)
    assert (await it.http.get(f"{URL}/{batch_id}")).status_code == 404
    assert (await it.openai.batches.list()).data == []
    assert (await it.openai.files.list()).data == []


async def test_a_message_batch_that_is_canceled(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="b")
    batch_id = await create(it, *(message(name) for name in "abc"))

    async def two_answered() -> bool:
        (ours,) = (await it.openai.batches.list()).data
        return bool(ours.request_counts and ours.request_counts.completed == 2)

    await until(two_answered, "two answers")
    canceling = (await it.http.post(f"{URL}/{batch_id}/cancel")).json()
    assert canceling["processing_status"] in ("canceling", "ended")
    batch = await ended(it, batch_id)
    assert batch["request_counts"] == {"processing": 0, "succeeded": 2, "errored": 0, "canceled": 1, "expired": 0}
    found = await results(it, batch)
    assert [found[name]["type"] for name in "abc"] == ["succeeded", "canceled", "succeeded"]


async def test_a_model_that_nobody_lists_is_left_to_the_engine(stack: MakeStack) -> None:
    it = await stack()
    batch_id = await create(it, message("a"), message("b", model="nobody-s"))
    batch = await ended(it, batch_id)
    found = await results(it, batch)
    assert found["a"]["type"] == "succeeded"
    assert found["b"]["error"]["error"]["type"] == "not_found_error"
