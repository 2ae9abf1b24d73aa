from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from api.dev.echo import CONTEXT_TOKENS, DIMENSIONS, MODEL, create_echo_app, run_echo_model


@pytest.fixture
async def client() -> AsyncGenerator[AsyncOpenAI]:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(create_echo_app(latency=0)))
    async with AsyncOpenAI(base_url="http://echo/v1", api_key="none", max_retries=0, http_client=http) as client:
        yield client


def _said(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_lists_its_model(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]


async def test_chat_echoes_the_last_user_message(client: AsyncOpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Be short."}, *_said("first"), *_said("Grüße, 世界")]
    answer = await client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.choices[0].message.content == "You said: Grüße, 世界"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("echo-")
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 4, 9)


async def test_chat_takes_content_parts(client: AsyncOpenAI) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    answer = await client.chat.completions.create(model=MODEL, messages=_said(parts))
    assert answer.choices[0].message.content == "You said: one two"


async def test_max_tokens_cuts_the_answer(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=_said("a b c"), max_completion_tokens=3)
    assert answer.choices[0].message.content == "You said: a"
    assert answer.choices[0].finish_reason == "length"


async def test_messages_echo_as_anthropic_has_it(client: AsyncOpenAI) -> None:
    body = {"model": MODEL, "max_tokens": 3, "messages": _said("a b c")}
    answer: Any = await client.post("/messages", body=body, cast_to=object)
    assert answer["content"] == [{"type": "text", "text": "You said: a"}]
    assert (answer["type"], answer["stop_reason"]) == ("message", "max_tokens")
    assert answer["usage"] == {"input_tokens": 3, "output_tokens": 3}


async def test_completions_answer_each_prompt(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt=["one", "two words"])
    assert [choice.text for choice in answer.choices] == ["You said: one", "You said: two words"]
    assert answer.object == "text_completion"
    assert answer.usage
    assert answer.usage.total_tokens == 3 + 3 + 4


async def test_embeddings_follow_from_the_text(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model=MODEL, input=["one", "two", "one"])
    vectors = [item.embedding for item in answer.data]
    assert [len(vector) for vector in vectors] == [DIMENSIONS] * 3
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(number * number for number in vectors[0]) == pytest.approx(1)
    assert answer.usage.total_tokens == 3


async def test_refuses_what_does_not_fit_its_context(client: AsyncOpenAI) -> None:
    create = client.chat.completions.create
    await create(model=MODEL, messages=_said("two words"), max_tokens=CONTEXT_TOKENS - 2)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens") as refused:
        await create(model=MODEL, messages=_said("two words"), max_tokens=CONTEXT_TOKENS - 1)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    assert refused.value.type == "invalid_request_error"


async def test_refuses_unknown_models(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="gpt-9", messages=_said("x"))
    assert refused.value.code == "model_not_found"


_WRONG_BODIES: list[tuple[str, Any]] = [
    ("/chat/completions", {"model": MODEL}),
    ("/chat/completions", {"model": MODEL, "messages": []}),
    ("/chat/completions", {"model": MODEL, "messages": ["x"]}),
    ("/chat/completions", {"messages": _said("x")}),
    ("/chat/completions", []),
    ("/completions", {"model": MODEL, "prompt": ["x", {}]}),
    ("/embeddings", {"model": MODEL, "input": []}),
]


@pytest.mark.parametrize(
    ("path", "body"),
    _WRONG_BODIES,
)
async def test_refuses_what_is_missing_or_wrong(client: AsyncOpenAI, path: str, body: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post(path, body=body, cast_to=httpx2.Response)
    assert refused.value.type == "invalid_request_error"


async def test_refuses_what_is_not_json(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.post("/chat/completions", content=b"{", cast_to=httpx2.Response)


async def test_takes_what_cannot_be_encoded(client: AsyncOpenAI) -> None:
    raw = b'{"model":"echo","messages":[{"role":"user","content":"\\ud800"}]}'
    answer: Any = await client.post("/chat/completions", content=raw, cast_to=object)
    assert answer["choices"][0]["message"]["content"] == "You said: \ud800"


async def test_latency_varies_with_the_body_only() -> None:
    loop = asyncio.get_running_loop()
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(create_echo_app(latency=0.1)))

    async def seconds(client: AsyncOpenAI, text: str) -> float:
        start = loop.time()
        await client.chat.completions.create(model=MODEL, messages=_said(text))
        return loop.time() - start

    async with AsyncOpenAI(base_url="http://echo/v1", api_key="none", http_client=http) as client:
        await seconds(client, "warm")
        times = await asyncio.gather(*(seconds(client, str(n)) for n in range(8)))
    assert min(times) >= 0.05
    assert max(times) - min(times) > 0.01


async def test_is_served_inside_the_loop_without_touching_signals() -> None:
    handler = signal.getsignal(signal.SIGINT)
    async with run_echo_model() as base_url:
        assert signal.getsignal(signal.SIGINT) is handler
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            answer = await client.chat.completions.create(model=MODEL, messages=_said("hello"))
            assert answer.choices[0].message.content == "You said: hello"
    with pytest.raises(httpx2.ConnectError):
        async with httpx2.AsyncClient() as http:
            await http.get(f"{base_url}/models")
