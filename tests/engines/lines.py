"""Request lines for real engines, and what of their answers is the same each time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from openai import AsyncOpenAI

from tests.e2e.processes import Launcher, finished, submit
from tests.engines.server import EngineServer

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, RERANK, SCORE = "/v1/responses", "/v1/messages", "/v1/rerank", "/v1/score"

LONG = "x " * 3000
"""More tokens than any of the models takes."""
YES_OR_NO = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "answer", "description": "Answers.", "parameters": YES_OR_NO}}


def line(custom_id: str, url: str, model: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": model, **body}}


def chat(custom_id: str, model: str = "tiny-chat", prompt: Any = None, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt or f"say {custom_id}"}]
    return line(custom_id, CHAT, model, **{"messages": messages, "max_tokens": 8, **body})


def as_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def shape(value: Any, name: str = "") -> Any:
    """What does not depend on the model's mood: members, kinds of values, and how many choices there are."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if members and all(isinstance(member, float) for member in members.values()):
            return "numbers"  # by token: the log probabilities of a completion
        return {name: shape(member, name) for name, member in members.items()}
    if name == "bytes":
        return name  # of a token, which may have none
    if isinstance(value, list):
        shapes = [json.dumps(shape(item)) for item in cast("list[Any]", value)]
        return shapes if name in ("choices", "data", "results", "output") else sorted(set(shapes))
    return type(value).__name__ if value is not None else None


def seen(status: int, body: Any) -> tuple[int, Any]:
    """What of an answer is to be the same each time: all of an error, the shape of a success."""
    return status, shape(body) if status == 200 else body


async def start(cluster: Launcher, tmp_path: Path, engines: Sequence[EngineServer], **settings: str) -> AsyncOpenAI:
    path = tmp_path / "upstreams.toml"
    path.write_text(
        "".join(
            f'[[upstream]]\nname = "{e.model}"\nurl = "{e.url}"\nmodels = {json.dumps(e.models)}\n\n' for e in engines
        )
    )
    cluster.env |= {
        "EVERBATCH_UPSTREAMS": str(path),
        "EVERBATCH_EXTRA_ENDPOINTS": f"{RERANK},{SCORE}",
        **{f"EVERBATCH_{name.upper()}": value for name, value in settings.items()},
    }
    await cluster.worker()
    return (await cluster.serve())[1]


async def assert_answered_as_when_asked(
    client: AsyncOpenAI, engines: Sequence[EngineServer], endpoints: Mapping[str, Sequence[dict[str, Any]]]
) -> None:
    """Each line of a batch for each endpoint gets the status and body that the engine gives when asked directly."""
    by_model = {model: one for one in engines for model in one.models}
    batches = {url: await submit(client, list(lines), url) for url, lines in endpoints.items()}
    for url, lines in endpoints.items():
        result = await finished(client, batches[url])
        assert result.batch.status == "completed", url
        got = {line["custom_id"]: line["response"] for line in (*result.output, *result.errors)}
        assert result.counts[0] == len(got) == len(lines)
        for one in lines:
            body = one["body"]
            expected = seen(*await by_model[body["model"]].ask(url, body))
            answer = got[one["custom_id"]]
            assert seen(answer["status_code"], answer["body"]) == expected, (url, one["custom_id"])
        assert result.refused == [one["custom_id"] for one in lines if got[one["custom_id"]]["status_code"] != 200]
