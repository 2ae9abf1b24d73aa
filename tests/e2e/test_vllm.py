"""Everbatch in front of a real vLLM: `make engines-vllm`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
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
    SCORE,
    TOOL,
    YES_OR_NO,
    as_schema,
    assert_answered_as_when_asked,
    chat,
    line,
    start,
)
from tests.engines.server import starter
from tests.engines.vllm import LORA, Kind, VllmServer, is_installed
from tests.integration.stack import progress_of

pytestmark = [
    pytest.mark.engines_vllm,
    pytest.mark.skipif(not is_installed(), reason="no vLLM: `make engines-vllm` installs it"),
    pytest.mark.timeout(1200),
]

StartEngine = Callable[..., Awaitable[VllmServer]]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncGenerator[StartEngine]:
    """Starts an engine: ``await engine("embed")``."""
    async with starter(VllmServer, tmp_path / "engines") as start:
        yield start


def of_chat() -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    return [
        chat("plain"),
        chat("lora", LORA),
        chat("image", prompt=[{"type": "text", "text": "what?"}, image]),
        chat("unicode", prompt="\u00e9\u2028\U0001f600 \u0000"),
        chat("n", n=3),
        chat("logprobs", logprobs=True, top_logprobs=2),
        chat("json_schema", response_format=as_schema(YES_OR_NO), max_tokens=60),
        chat("tools", tools=[TOOL], tool_choice="auto"),
        chat("tool_unused", tools=[TOOL], tool_choice="none"),
        chat("stop", stop=["a", "e"], seed=7, temperature=0),
        chat("too_long", prompt=LONG),
        chat("too_many_tokens", max_tokens=100_000),
        chat("bad_temperature", temperature="hot"),
        chat("bad_format", response_format={"type": "xml"}),
        chat("n_of_none", n=0),
        chat("no_messages", messages=[]),
        *(chat(f"more-{number}") for number in range(10)),
    ]


def of(url: str, model: str, **defaults: Any) -> Callable[..., dict[str, Any]]:
    def make(custom_id: str, **body: Any) -> dict[str, Any]:
        return line(custom_id, url, model, **{**defaults, **body})

    return make


completion = of(COMPLETIONS, "tiny-chat", prompt="once", max_tokens=8)
embedding = of(EMBEDDINGS, "tiny-embed", input="once")
response = of(RESPONSES, "tiny-chat", input="once", max_output_tokens=8)
message = of(MESSAGES, "tiny-chat", messages=[{"role": "user", "content": "once"}], max_tokens=8)
rerank = of(RERANK, "tiny-rerank", query="once", documents=["a", "b", "c"])
score = of(SCORE, "tiny-rerank", text_1="once", text_2=["a", "b"])

ENDPOINTS = {
    CHAT: of_chat(),
    COMPLETIONS: [
        completion("plain"),
        completion("two", prompt=["once", "twice"]),
        completion("tokens", prompt=[70, 71, 72]),
        completion("logprobs", logprobs=2, temperature=0),
        completion("too_long", prompt=LONG),
        completion("bad_limit", max_tokens="many"),
    ],
    EMBEDDINGS: [
        embedding("plain"),
        embedding("two", input=["once", "twice"]),
        embedding("base64", encoding_format="base64"),
        embedding("too_long", input=LONG),
        embedding("bad_format", encoding_format="hex"),
    ],
    RESPONSES: [response("plain"), response("instructions", instructions="be short"), response("too_long", input=LONG)],
    MESSAGES: [
        message("plain"),
        message("system", system="be short", stop_sequences=["a"]),
        message("too_long", messages=[{"role": "user", "content": LONG}]),
    ],
    RERANK: [rerank("plain"), rerank("top_n", top_n=1)],
    SCORE: [score("plain"), score("pair", text_2="twice"), score("too_long", text_2=LONG)],
}


@pytest.mark.parametrize(
    ("kind", "endpoints"),
    [
        ("chat", (CHAT, COMPLETIONS, RESPONSES, MESSAGES)),
        ("embed", (EMBEDDINGS,)),
        ("rerank", (RERANK, SCORE)),
    ],
)
async def test_each_line_is_answered_as_the_engine_answers(
    cluster: Launcher, tmp_path: Path, engine: StartEngine, kind: Kind, endpoints: Sequence[str]
) -> None:
    it = await engine(kind)
    async with await start(cluster, tmp_path, [it], max_attempts="1") as client:
        await assert_answered_as_when_asked(client, [it], {url: ENDPOINTS[url] for url in endpoints})


async def test_killed_and_started_again_mid_batch(cluster: Launcher, tmp_path: Path, engine: StartEngine) -> None:
    """Not there at first, killed while it works, and gone at the end."""
    count = 400
    it = await engine(runs=False)
    lines = [chat(f"r-{number}", max_tokens=100, ignore_eos=True) for number in range(count)]
    async with await start(cluster, tmp_path, [it]) as client:
        batch_id = await submit(client, lines)
        reason = "refuses connections"
        await until_batch(client, batch_id, lambda batch: reason in (progress_of(batch).get("waiting_reason") or ""))
        await it.start()
        await until_batch(client, batch_id, lambda batch: done(batch) >= 0.4 * count, 300)
        await it.kill()
        await asyncio.sleep(0.5)
        await it.start()
        result = await finished(client, batch_id, 600)
        await it.kill()
    assert result.counts == (count, count, 0)
    assert result.answered == [one["custom_id"] for one in lines]
    assert [one["response"]["body"]["usage"]["completion_tokens"] for one in result.output] == [100] * count
    assert count <= it.begun() <= count + 256, "what was in flight is sent again, and nothing else"


async def test_a_cancel_frees_its_sequences(cluster: Launcher, tmp_path: Path, engine: StartEngine) -> None:
    it = await engine()
    async with await start(cluster, tmp_path, [it]) as client:
        batch_id = await submit(client, [chat(f"r-{n}", max_tokens=1900, ignore_eos=True) for n in range(100)])

        await it.until_busy(16, 60)
        await client.batches.cancel(batch_id)
        cancelled = time.monotonic()
        await it.until_busy(0, 20)
        seconds = time.monotonic() - cancelled
        batch = await until_batch(client, batch_id, lambda batch: batch.status in TERMINAL)
        assert batch.status == "cancelled"
    assert seconds <= 2
