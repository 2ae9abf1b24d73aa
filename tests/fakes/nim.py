"""A fake engine that refuses what NVIDIA NIM refuses, as its documentation and its clients tell of it."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.engine import Engine, EngineOptions
from tests.fakes.engine_answers import http_error, string_member
from tests.fakes.engine_protocol import Connection

_URLS = ("http://", "https://", "data:")
_NOT_TOP_LEVEL = ("top_k", "repetition_penalty", "guided_json")


class NimEngine(Engine):
    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self.bodies: dict[str, dict[str, Any]] = {}
        """What came last for each custom_id."""

    def receive(self, connection: Connection, path: bytes, body: bytes) -> None:
        content = json.loads(body)
        self.bodies[(string_member(body, b"user") or b"-").decode()] = content
        if why := why_refused(path.decode(), content):
            connection.send(http_error(422, why))
        else:
            super().receive(connection, path, body)


def why_refused(path: str, body: dict[str, Any]) -> str:
    """Why NIM would refuse this body, empty if it would not."""
    if path not in ("/v1/chat/completions", "/v1/completions"):
        return ""
    for name in _NOT_TOP_LEVEL:
        if name in body:
            return f"{name}: extra inputs are not permitted"
    nvext: dict[str, Any] = body.get("nvext") or {}
    top_k: object = nvext.get("top_k", 0)
    if type(top_k) is not int or not (top_k == -1 or top_k >= 1):
        return "nvext.top_k must be -1 or at least 1"
    if "guided_json" in nvext and "response_format" in body:
        return "guided_json and response_format cannot be used together"
    if body.get("response_format", {}).get("type") == "json_schema":
        return "response_format.type: json_schema is not supported"
    if "tool_choice" in body and not body.get("tools"):
        return "tool_choice is only allowed when tools are specified"
    return _why_messages_refused(body.get("messages", []))


def _why_messages_refused(messages: list[dict[str, Any]]) -> str:
    for message in messages:
        calls: list[dict[str, Any]] = message.get("tool_calls") or []
        if any(not isinstance(call["function"]["arguments"], str) for call in calls):
            return "tool_calls.function.arguments must be a string"
        content: list[dict[str, Any]] | str | None = message.get("content")
        for part in content if isinstance(content, list) else []:
            if part["type"] not in ("text", "image_url"):
                return f"content parts of type {part['type']} are not supported"
            if part["type"] == "image_url" and not str(part["image_url"]["url"]).startswith(_URLS):
                return "image_url.url must be a URL or a data URL"
    return ""
