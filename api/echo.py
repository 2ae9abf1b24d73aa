"""The built-in echo model: an OpenAI-compatible server that repeats what it is told.

It stands in where no inference server is configured, so that everything around it can be seen at work; its
answers have OpenAI's shapes, and it refuses what a real engine refuses. Tokens are words.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import math
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from api.http_server import listen, serve

ECHO_MODEL = "echo"
EMBEDDING_MODEL = "echo-embedding"
CONTEXT_TOKENS = 4096
DIMENSIONS = 16

Json = dict[str, Any]


@dataclass(eq=False)
class Refusal(Exception):
    """Answered as OpenAI's error envelope."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None


def create_echo_app(latency: float = 0.05) -> ASGIApp:
    """The echo model as an ASGI app; a request takes half to one and a half times ``latency`` seconds."""

    def endpoint(answer: Callable[[Json, bytes], Json], model: str) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            raw = await request.body()
            body = _parse(raw)
            _check_model(body, model)
            content = answer(body, raw)
            await asyncio.sleep(latency * (0.5 + _uniform(raw)))
            try:
                return JSONResponse(content, headers={"x-request-id": f"req_{_digest(raw)}"})
            except UnicodeEncodeError:
                raise Refusal(400, "The text holds half of a surrogate pair.") from None

        return handle

    return Starlette(
        routes=[
            Route("/v1/models", _list_models),
            Route("/v1/models/{model:path}", _get_model),
            Route("/v1/chat/completions", endpoint(_chat, ECHO_MODEL), methods=["POST"]),
            Route("/v1/completions", endpoint(_completion, ECHO_MODEL), methods=["POST"]),
            Route("/v1/embeddings", endpoint(_embedding, EMBEDDING_MODEL), methods=["POST"]),
        ],
        exception_handlers={Refusal: _refused, 404: _unknown_url, 405: _unknown_url},
    )


@contextlib.asynccontextmanager
async def run_echo_model(latency: float = 0.05) -> AsyncGenerator[str]:
    """Serve the echo model from the running event loop, on a free port of the loopback; yields its base URL."""
    listener = listen("127.0.0.1", 0)
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(create_echo_app(latency), listener, stop))
    try:
        # The socket listens already, so a request that comes before the server is up waits in its backlog.
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        stop.set()
        await serving


def _parse(raw: bytes) -> Json:
    try:
        body: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "The body of the request must be a JSON object.")
    if body.get("stream"):  # pyright: ignore[reportUnknownMemberType]
        raise Refusal(400, "The echo model does not stream.", "unsupported_value", "stream")
    return cast("Json", body)


def _check_model(body: Json, wanted: str) -> None:
    model = _required(body, "model", str, "a string")
    if model not in (ECHO_MODEL, EMBEDDING_MODEL):
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise Refusal(404, message, "model_not_found", "model")
    if model != wanted:
        raise Refusal(400, f"The model `{model}` cannot be used here; `{wanted}` can.", "unsupported_value", "model")


def _chat(body: Json, raw: bytes) -> Json:
    messages = _required(body, "messages", list, "an array")
    if not messages:
        raise Refusal(400, "Invalid 'messages': empty array.", "empty_array", "messages")
    texts = [_message_text(message, index) for index, message in enumerate(messages)]
    asked = [text for message, text in zip(messages, texts, strict=True) if message["role"] == "user"]
    answer, finish, usage = _generate(body, "messages", " ".join(texts), asked[-1] if asked else texts[-1])
    message: Json = {"role": "assistant", "content": answer, "refusal": None, "annotations": []}
    return {
        "id": f"chatcmpl-{_digest(raw)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ECHO_MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": usage,
        "system_fingerprint": None,
    }


def _message_text(message: Any, index: int) -> str:
    """The text of one chat message, whose content is a string or a list of parts."""
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):  # pyright: ignore[reportUnknownMemberType]
        raise Refusal(400, f"Missing required parameter: '{where}.role'.", "missing_required_parameter", where)
    content: Any = cast("Json", message).get("content")
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        return " ".join(str(cast("Json", part).get("text", "")) for part in parts if isinstance(part, dict))
    if content is not None and not isinstance(content, str):
        raise Refusal(400, f"Invalid type for '{where}.content'.", "invalid_type", f"{where}.content")
    return content or ""


def _completion(body: Json, raw: bytes) -> Json:
    prompts = _texts(body, "prompt")
    choices: list[Json] = []
    totals = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    for index, prompt in enumerate(prompts):
        answer, finish, usage = _generate(body, "prompt", prompt, prompt)
        choices.append({"index": index, "text": answer, "logprobs": None, "finish_reason": finish})
        totals = {name: count + usage[name] for name, count in totals.items()}
    return {
        "id": f"cmpl-{_digest(raw)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": ECHO_MODEL,
        "choices": choices,
        "usage": totals,
    }


def _generate(body: Json, param: str, prompt: str, said: str) -> tuple[str, str, dict[str, int]]:
    """The answer, why it ends, and its usage."""
    limit: Any = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise Refusal(400, "Invalid 'max_tokens': expected a positive integer.", "invalid_value", "max_tokens")
    prompt_tokens = len(prompt.split())
    if prompt_tokens + (limit or 0) > CONTEXT_TOKENS:
        message = (
            f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, you requested "
            f"{prompt_tokens + (limit or 0)} tokens ({prompt_tokens} in the {param}, {limit or 0} in the "
            f"completion). Please reduce the length of the {param} or completion."
        )
        raise Refusal(400, message, "context_length_exceeded", param)
    words = f"You said: {said}".split(" ")
    answer = " ".join(words[:limit])
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(answer.split())}
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return answer, "length" if limit is not None and limit < len(words) else "stop", usage


def _embedding(body: Json, _raw: bytes) -> Json:
    texts = _texts(body, "input")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        message = f"Invalid value: '{encoding}'. Supported values are: 'float' and 'base64'."
        raise Refusal(400, message, "invalid_value", "encoding_format")
    tokens = sum(len(text.split()) for text in texts)
    if max(len(text.split()) for text in texts) > CONTEXT_TOKENS:
        message = f"This model's maximum context length is {CONTEXT_TOKENS} tokens."
        raise Refusal(400, message, "context_length_exceeded", "input")
    vectors = [_vector(text) for text in texts]
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if encoding == "base64" else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": EMBEDDING_MODEL, "usage": usage}


def _vector(text: str) -> list[float]:
    """A unit vector that follows from the text and means nothing."""
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * DIMENSIONS)
    numbers = [value + 0.5 for value in struct.unpack(f"<{DIMENSIONS}h", digest)]
    norm = math.hypot(*numbers)
    # Through 32 bits, so that both encodings carry the same numbers.
    return list(struct.unpack(f"<{DIMENSIONS}f", struct.pack(f"<{DIMENSIONS}f", *(n / norm for n in numbers))))


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _texts(body: Json, name: str) -> list[str]:
    """A parameter that is a string or a list of strings; tokens, as numbers, count as one word each."""
    value = _required(body, name, (str, list), "a string or an array")
    if isinstance(value, str):
        return [value]
    items = cast("list[Any]", value)
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    texts = [item if isinstance(item, str) else " ".join(map(str, item)) for item in items if _is_text(item)]
    if not texts or len(texts) < len(items):
        raise Refusal(400, f"Invalid '{name}': expected strings, or arrays of tokens.", "invalid_type", name)
    return texts


def _is_text(item: Any) -> bool:
    return isinstance(item, str) or (
        isinstance(item, list) and all(isinstance(token, int) for token in cast("list[Any]", item))
    )


def _required(body: Json, name: str, kind: type | tuple[type, ...], described: str) -> Any:
    if body.get(name) is None:
        raise Refusal(400, f"Missing required parameter: '{name}'.", "missing_required_parameter", name)
    if not isinstance(body[name], kind):
        raise Refusal(400, f"Invalid type for '{name}': expected {described}.", "invalid_type", name)
    return body[name]


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=12).hexdigest()


def _uniform(raw: bytes) -> float:
    return int(_digest(raw)[:8], 16) / 2**32


def _model_card(model: str) -> Json:
    return {"id": model, "object": "model", "created": 1_700_000_000, "owned_by": "everbatch"}


async def _list_models(_request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model_card(ECHO_MODEL), _model_card(EMBEDDING_MODEL)]})


async def _get_model(request: Request) -> Response:
    model = request.path_params["model"]
    if model not in (ECHO_MODEL, EMBEDDING_MODEL):
        raise Refusal(404, f"The model `{model}` does not exist.", "model_not_found", "model")
    return JSONResponse(_model_card(model))


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    content = {"message": error.message, "type": "invalid_request_error", "param": error.param, "code": error.code}
    return JSONResponse({"error": content}, status_code=error.status)


async def _unknown_url(request: Request, _error: Exception) -> Response:
    return await _refused(request, Refusal(404, f"Invalid URL ({request.method} {request.url.path})"))
