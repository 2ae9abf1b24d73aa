"""The built-in echo model: an OpenAI-compatible server for the demo, which repeats the text that it receives.

``everbatch dev`` uses it if no upstream is configured. It counts words as tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from api.http.server import listen, serve

MODEL = "echo"
CONTEXT_TOKENS = 4096
DIMENSIONS = 16

Json = dict[str, Any]


class RefusalError(Exception):
    """A request is refused with an HTTP status and OpenAI's error envelope."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


def create_echo_app(latency: float = 0.05) -> ASGIApp:
    """Create the echo model as an ASGI app. A request takes 0.5 to 1.5 times ``latency``, which is in seconds."""

    def endpoint(answer: Callable[[Json], Json]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            raw = await request.body()
            digest = hashlib.blake2b(raw, digest_size=12).hexdigest()
            content = {"id": f"{MODEL}-{digest}", "created": int(time.time()), "model": MODEL, **_answer(answer, raw)}
            await asyncio.sleep(latency * (0.5 + int(digest[:8], 16) / 2**32))
            # Not JSONResponse, which cannot encode an unpaired surrogate.
            return Response(json.dumps(content), media_type="application/json")

        return handle

    return Starlette(
        routes=[
            Route("/v1/models", _list_models),
            Route("/v1/chat/completions", endpoint(_chat), methods=["POST"]),
            Route("/v1/completions", endpoint(_completion), methods=["POST"]),
            Route("/v1/messages", endpoint(_message), methods=["POST"]),
            Route("/v1/embeddings", endpoint(_embedding), methods=["POST"]),
        ],
        exception_handlers={RefusalError: _refused},
    )


@contextlib.asynccontextmanager
async def run_echo_model() -> AsyncGenerator[str]:
    """Serve the echo model from the running event loop on a free loopback port, and yield its base URL."""
    listener = listen("127.0.0.1", 0)
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(create_echo_app(), listener, stop))
    try:
        # The socket already listens, so a request that arrives before the server is up waits in the backlog.
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        stop.set()
        await serving


def _answer(answer: Callable[[Json], Json], raw: bytes) -> Json:
    try:
        body: Json = json.loads(raw)
        if body["model"] != MODEL:
            raise RefusalError(404, f"The model `{body['model']}` does not exist.", "model_not_found", "model")
        return answer(body)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RefusalError(400, f"The body of the request is invalid ({type(error).__name__}).") from None


def _chat(body: Json) -> Json:
    texts = [_text_of(message["content"]) for message in body["messages"]]
    prompts = [text for message, text in zip(body["messages"], texts, strict=True) if message["role"] == "user"]
    answer, finish, usage = _generate(body, "messages", " ".join(texts), prompts[-1])
    message = {"role": "assistant", "content": answer, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def _message(body: Json) -> Json:
    """Return the response in the format of Anthropic's Messages API."""
    chat = _chat(body)
    (choice,), usage = chat["choices"], chat["usage"]
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": choice["message"]["content"]}],
        "stop_reason": "max_tokens" if choice["finish_reason"] == "length" else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
    }


def _text_of(content: str | list[Json]) -> str:
    return content if isinstance(content, str) else " ".join(part["text"] for part in content)


def _completion(body: Json) -> Json:
    answers = [_generate(body, "prompt", prompt, prompt) for prompt in _texts(body["prompt"])]
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        for index, (text, finish, _) in enumerate(answers)
    ]
    usage = {name: sum(usage[name] for _, _, usage in answers) for name in answers[0][2]}
    return {"object": "text_completion", "choices": choices, "usage": usage}


def _generate(body: Json, param: str, prompt: str, last: str) -> tuple[str, str, dict[str, int]]:
    """Return the generated text, its finish reason and its token usage."""
    limit: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    prompt_tokens = len(prompt.split())
    if prompt_tokens + (limit or 0) > CONTEXT_TOKENS:
        message = (
            f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, you requested "
            f"{prompt_tokens + (limit or 0)} tokens ({prompt_tokens} in the {param}, {limit or 0} in the "
            f"completion). Please reduce the length of the {param} or completion."
        )
        raise RefusalError(400, message, "context_length_exceeded", param)
    words = f"You said: {last}".split(" ")
    answer = " ".join(words[:limit])
    tokens = len(answer.split())
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    return answer, "length" if limit is not None and limit < len(words) else "stop", usage


def _embedding(body: Json) -> Json:
    texts = _texts(body["input"])
    tokens = sum(len(text.split()) for text in texts)
    data = [{"object": "embedding", "index": index, "embedding": _vector(text)} for index, text in enumerate(texts)]
    return {"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _vector(text: str) -> list[float]:
    """Return a unit vector that depends only on the text and has no meaning."""
    numbers = [byte - 127.5 for byte in hashlib.shake_256(text.encode()).digest(DIMENSIONS)]
    norm = math.hypot(*numbers)
    return [number / norm for number in numbers]


def _texts(value: str | list[str]) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not texts or not all(isinstance(text, str) for text in cast("list[object]", texts)):
        raise TypeError
    return texts


async def _list_models(_request: Request) -> Response:
    models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "everbatch"}]
    return JSONResponse({"object": "list", "data": models})


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return JSONResponse({"error": error.content}, error.status)
