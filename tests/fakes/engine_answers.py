"""The fake engine's bytes: how it finds what it needs in a request, and the answers it gives."""

from __future__ import annotations

import json
import math
from typing import Any

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    408: "Request Timeout",
    411: "Length Required",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_FILL = "lorem ipsum dolor sit amet "
_MARK = "@CUSTOM-ID@"


def string_member(body: bytes, name: bytes) -> bytes | None:
    """The raw bytes of a JSON string member, found without parsing.

    Safe because quotes inside a JSON string are escaped: ``"name":`` can only be a key (of whichever depth).
    """
    at = body.find(b'"%b": "' % name)
    if at >= 0:
        start = at + len(name) + 5
    else:
        at = body.find(b'"%b":"' % name)
        if at < 0:
            return None
        start = at + len(name) + 4
    end = body.find(b'"', start)
    return body[start:end] if end >= 0 else None


def http_answer(status: int, body: bytes, headers: bytes = b"", content_type: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status,
        _REASONS.get(status, "Status").encode(),
        content_type,
        headers,
        len(body),
        body,
    )


def http_json(status: int, value: Any) -> bytes:
    return http_answer(status, json.dumps(value).encode())


def http_error(status: int, message: str, code: str | None = None, retry_after: float | None = None) -> bytes:
    """A refusal in OpenAI's envelope."""
    error = {"message": message, "type": "invalid_request_error" if status < 500 else "server_error"}
    body = json.dumps({"error": {**error, "param": None, "code": code}}).encode()
    headers = b"" if retry_after is None else b"retry-after: %d\r\n" % math.ceil(retry_after)
    return http_answer(status, body, headers)


class Answers:
    """Success answers, ready but for the custom_id, which each carries so that a swapped one is noticed."""

    def __init__(self, model: str, answer_bytes: int) -> None:
        self._templates = {path.encode(): _template(body, answer_bytes) for path, body in _bodies(model).items()}

    def paths(self) -> list[bytes]:
        return list(self._templates)

    def success(self, path: bytes, custom_id: bytes, number: int) -> bytes:
        before, fill, after = self._templates[path]
        # The fill gives way to the id, so answers are of one size.
        body = before + custom_id + fill[: max(0, len(fill) - len(custom_id))] + after
        return (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req-%d\r\ncontent-length: %d\r\n\r\n%b"
            % (number, len(body), body)
        )


def _template(body: dict[str, Any], answer_bytes: int) -> tuple[bytes, bytes, bytes]:
    before, after = json.dumps(body, separators=(",", ":")).encode().split(_MARK.encode())
    length = max(0, answer_bytes - len(before) - len(after))
    fill = (" " + _FILL * (length // len(_FILL) + 1)).encode()[:length]
    return before, fill, after


def _bodies(model: str) -> dict[str, dict[str, Any]]:
    usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    head = {"id": "fake-1", "created": 1_700_000_000, "model": model}
    choice = {"index": 0, "logprobs": None, "finish_reason": "stop"}
    message = {"role": "assistant", "content": _MARK, "refusal": None}
    part: dict[str, Any] = {"type": "output_text", "text": _MARK, "annotations": []}
    item: dict[str, Any] = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    vector = [round(math.sin(n + 1), 6) for n in range(16)]
    return {
        "/v1/chat/completions": {
            **head,
            "object": "chat.completion",
            "choices": [{**choice, "message": message}],
            "usage": usage,
        },
        "/v1/completions": {
            **head,
            "object": "text_completion",
            "choices": [{**choice, "text": _MARK}],
            "usage": usage,
        },
        "/v1/embeddings": {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
            "model": model,
            "usage": {"prompt_tokens": 20, "total_tokens": 20},
            "fake": _MARK,
        },
        "/v1/messages": {
            "id": "msg_fake",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": _MARK}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 20, "output_tokens": 10},
        },
        "/v1/responses": {
            "id": "resp_fake",
            "object": "response",
            "created_at": 1_700_000_000,
            "status": "completed",
            "model": model,
            "output": [item],
            "usage": {
                "input_tokens": 20,
                "input_tokens_details": {"cached_tokens": 4},
                "output_tokens": 10,
                "output_tokens_details": {"reasoning_tokens": 2},
                "total_tokens": 30,
            },
        },
    }
