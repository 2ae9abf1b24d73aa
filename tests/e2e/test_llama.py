"""Everbatch in front of a real llama.cpp: `make engines`."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from api.client import TERMINAL
from tests.e2e.processes import Launcher, done, finished, submit, until_batch
from tests.engines.lines import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    LONG,
    MESSAGES,
    RERANK,
    RESPONSES,
    TOOL,
    YES_OR_NO,
    as_schema,
    assert_answered_as_when_asked,
    chat,
    line,
    start,
)
from tests.engines.llama import LlamaServer, is_installed
from tests.engines.server import starter
from tests.integration.stack import progress_of

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not is_installed(), reason="no llama.cpp: `make engines` installs it"),
]

StartEngine = Callable[..., Awaitable[LlamaServer]]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncGenerator[StartEngine]:
    """Starts an engine: ``await engine("embed", slots=2)``."""
    async with starter(LlamaServer, tmp_path / "engines") as start:
        yield start


def of_chat() -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    return [
        chat("image", prompt=[{"type": "text", "text": "what?"}, image]),
        chat("plain"),
        chat("unicode", prompt="\u00e9\u2028\U0001f600 \u0000"),
        chat("n", n=3),
        chat("logprobs", logprobs=True, top_logprobs=2),
        chat("json_schema", response_format=as_schema(YES_OR_NO), max_tokens=200),
        chat("tools", tools=[TOOL]),
        chat("tool_result", prompt="ho", tools=[TOOL], tool_choice="none"),
        chat("stop", stop=["a", "e"], seed=7, temperature=0),
        chat("too_long", prompt=LONG),
        chat("bad_temperature", temperature="hot"),
        chat("bad_schema", response_format=as_schema({"type": "nonsense"})),
        chat("bad_format", response_format={"type": "xml"}),
        chat("n_of_none", n=0),
        chat("n_too_many", n=100),
        chat("no_messages", messages=[]),
        *(chat(f"more-{number}") for number in range(10)),
    ]


def of_completions() -> list[dict[str, Any]]:
    def of(custom_id: str, **body: Any) -> dict[str, Any]:
        return line(custom_id, COMPLETIONS, "tiny-chat", **{"prompt": "once", "max_tokens": 8, **body})

    return [
        of("plain"),
        of("two", prompt=["once", "twice"]),
        of("tokens", prompt=[70, 71, 72]),
        of("logprobs", logprobs=2),
        of("too_long", prompt=LONG),
        of("bad_limit", max_tokens="many"),
    ]


def of_embeddings() -> list[dict[str, Any]]:
    def of(custom_id: str, **body: Any) -> dict[str, Any]:
        return line(custom_id, EMBEDDINGS, "tiny-embed", **{"input": "once", **body})

    return [
        of("too_long", input=LONG),
        of("plain"),
        of("two", input=["once", "twice"]),
        of("base64", encoding_format="base64"),
        of("bad_format", encoding_format="hex"),
        *(of(f"more-{number}") for number in range(10)),
    ]


def of_responses() -> list[dict[str, Any]]:
    def of(custom_id: str, **body: Any) -> dict[str, Any]:
        return line(custom_id, RESPONSES, "tiny-chat", **{"input": "once", "max_output_tokens": 8, **body})

    return [of("plain"), of("instructions", instructions="be short"), of("too_long", input=LONG)]


def of_messages() -> list[dict[str, Any]]:
    def of(custom_id: str, **body: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "once"}]
        return line(custom_id, MESSAGES, "tiny-chat", **{"messages": messages, "max_tokens": 8, **body})

    return [
        of("plain"),
        of("system", system="be short", stop_sequences=["a"]),
        of("too_long", messages=[{"role": "user", "content": LONG}]),
        of("tools", tools=[{"name": "answer", "description": "Answers.", "input_schema": YES_OR_NO}]),
    ]


def of_rerank() -> list[dict[str, Any]]:
    def of(custom_id: str, **body: Any) -> dict[str, Any]:
        return line(custom_id, RERANK, "tiny-rerank", **{"query": "once", "documents": ["a", "b", "c"], **body})

    return [of("plain"), of("top_n", top_n=1), of("no_documents", documents=[])]


ENDPOINTS = {
    CHAT: of_chat(),
    COMPLETIONS: of_completions(),
    EMBEDDINGS: of_embeddings(),
    RESPONSES: of_responses(),
    RERANK: of_rerank(),
    MESSAGES: of_messages(),
}


@pytest.mark.quick
async def test_each_line_is_answered_as_the_engine_answers(
    cluster: Launcher, tmp_path: Path, engine: StartEngine
) -> None:
    engines = [await engine("chat"), await engine("embed"), await engine("rerank")]
    async with await start(cluster, tmp_path, engines, max_attempts="1") as client:
        await assert_answered_as_when_asked(client, engines, ENDPOINTS)


@pytest.mark.quick
async def test_an_image_is_refused_once(cluster: Launcher, tmp_path: Path, engine: StartEngine) -> None:
    """Though its status is 500, and nobody else is there to be answered."""
    async with await start(cluster, tmp_path, [await engine()]) as client:
        images = [one for one in of_chat() if one["custom_id"] == "image"]
        result = await finished(client, await submit(client, images))
        assert (result.counts, result.error_codes) == ((1, 0, 1), {"image": "server_error"})
        assert "not supported" in result.errors[0]["error"]["message"]


async def test_killed_and_started_again_mid_batch(cluster: Launcher, tmp_path: Path, engine: StartEngine) -> None:
    """Not there at first, killed twice while it works, and gone at the end."""
    count, slots = 300, 4
    it = await engine(runs=False, slots=slots)
    lines = [chat(f"r-{number}", max_tokens=300, ignore_eos=True) for number in range(count)]
    async with await start(cluster, tmp_path, [it]) as client:
        batch_id = await submit(client, lines)
        reason = "refuses connections"
        await until_batch(client, batch_id, lambda batch: reason in (progress_of(batch).get("waiting_reason") or ""))
        await it.start()
        for fraction in (0.3, 0.6):
            await until_batch(client, batch_id, lambda batch, part=fraction: done(batch) >= part * count)
            await it.kill()
            await asyncio.sleep(0.5)
            await it.start()
        result = await finished(client, batch_id)
        await it.kill()
        assert result.counts == (count, count, 0)
        assert result.answered == [one["custom_id"] for one in lines]
        assert [one["response"]["body"]["usage"]["completion_tokens"] for one in result.output] == [300] * count
    # What was in flight is sent again, and what it answered a moment before.
    assert count <= it.begun() <= count + 2 * (64 + 64)


async def idle_since(it: LlamaServer) -> float:
    """The moment since which it works on nothing, once that is longer ago than it takes to begin with what waited."""
    since = time.monotonic()
    async with asyncio.timeout(30):
        while time.monotonic() - since < 1.5:
            if await it.busy():
                since = time.monotonic()
            await asyncio.sleep(0.02)
    return since


@pytest.mark.quick
async def test_a_cancel_frees_its_slots(cluster: Launcher, tmp_path: Path, engine: StartEngine) -> None:
    """Within two seconds, of which one is llama.cpp's own: it looks once a second whether a client is still there.

    With more in flight than slots it may take another second or two: it begins with what waited for one of its threads
    though that client is gone too. Sixteen direct requests that were closed together kept it busy for two seconds.
    """
    it = await engine(slots=4, slot_context=60_000)
    async with await start(cluster, tmp_path, [it], max_in_flight="4") as client:
        batch_id = await submit(client, [chat(f"r-{n}", max_tokens=50_000, ignore_eos=True) for n in range(100)])
        await it.until_busy(4, 30)
        await client.batches.cancel(batch_id)
        cancelled = time.monotonic()
        assert await idle_since(it) - cancelled <= 2
        batch = await until_batch(client, batch_id, lambda batch: batch.status in TERMINAL)
        assert batch.status == "cancelled"


async def test_one_slot(cluster: Launcher, tmp_path: Path, engine: StartEngine) -> None:
    """It works on one request at a time and lets the others wait, longer than the request timeout."""
    count, tokens = 100, 400
    it = await engine(slots=1)
    started = time.monotonic()
    status, _ = await it.ask(CHAT, chat("alone", max_tokens=tokens, ignore_eos=True)["body"])
    alone = time.monotonic() - started
    assert status == 200
    timeout = f"{max(0.5, 6 * alone):.2f}"
    async with await start(cluster, tmp_path, [it], request_timeout=timeout) as client:
        lines = [chat(f"r-{number}", max_tokens=tokens, ignore_eos=True) for number in range(count)]
        result = await finished(client, await submit(client, lines), 100)
    assert result.counts == (count, count, 0), Counter(result.error_codes.values())
