"""An inference server whose answers follow from the prompts, for the users' own tools.

``[[refuse]]`` in a prompt is answered by 400, ``[[silent]]`` never, anything else by its own text with characters that
break tools which split lines carelessly.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

from aiohttp import web

MODEL = "fake-model"
UNUSUAL = "żółw\u2028語"


def answer_to(prompt: str) -> str:
    """What the engine says to a prompt that it answers."""
    return f"{UNUSUAL} {prompt}"


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[dict[str, Any]]", content)
    return "".join(part.get("text", "") for part in parts)


def _prompt(body: dict[str, Any]) -> str:
    given = body.get("messages") or body.get("input")
    if isinstance(given, str):
        return given
    return _text_of(cast("list[dict[str, Any]]", given)[-1]["content"])


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(
        body=json.dumps(content, ensure_ascii=False).encode(), status=status, content_type="application/json"
    )


async def _answer(request: web.Request) -> web.Response:
    body: dict[str, Any] = await request.json()
    prompt = _prompt(body)
    if "[[refuse]]" in prompt:
        error = {
            "message": "This prompt is refused.",
            "type": "invalid_request_error",
            "param": None,
            "code": "refused",
        }
        return _json({"error": error}, 400)
    if "[[silent]]" in prompt:
        await asyncio.sleep(3600)
    match request.path.rpartition("/")[2]:
        case "responses":
            return _json(_responses(prompt))
        case "messages":
            return _json(_message(prompt))
        case _:
            return _json(_chat(body, prompt))


def _chat(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    text = answer_to(prompt)
    form = body.get("response_format") or "text"
    if (form if isinstance(form, str) else form.get("type")) != "text":
        text = json.dumps({"text": text}, ensure_ascii=False)
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _message(prompt: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": answer_to(prompt)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def _responses(prompt: str) -> dict[str, Any]:
    content: dict[str, Any] = {"type": "output_text", "text": answer_to(prompt), "annotations": []}
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "model": MODEL,
        "status": "completed",
        "error": None,
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 1,
            "output_tokens": 1,
            "total_tokens": 2,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def _models(_: web.Request) -> web.Response:
    return _json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


async def _serve() -> None:
    app = web.Application()
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _answer)
    app.router.add_post("/v1/responses", _answer)
    app.router.add_post("/v1/messages", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    sys.stdout.write(f"engine on {port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
