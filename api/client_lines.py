"""The lines of a batch's files from a client's side: requests written, results read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

CHAT: Final = "/v1/chat/completions"

Request = Mapping[str, Any] | tuple[str, Mapping[str, Any]]
"""``(custom_id, body)``, or a whole line of an input file, where ``method`` and ``url`` may be left out."""

MISSING: Final = "missing"
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Result:
    """What became of one request."""

    custom_id: str
    ok: bool
    """Answered with a status of 200 to 299. Whatever else a line holds is no success."""
    status_code: int | None = None
    """``None`` where no server answered."""
    body: dict[str, Any] | None = None
    """The answer as it came, also that of a refusal. ``ChatCompletion.model_validate(body)`` gives types to it."""
    error_code: str | None = None
    """``None`` if and only if ``ok``. ``missing`` where neither result file has the request."""
    error_message: str | None = None

    @property
    def usage(self) -> dict[str, Any] | None:
        """The tokens that the answer says it took, in the words of its endpoint."""
        return _member(self.body, "usage")

    @property
    def text(self) -> str | None:
        """What the model wrote, for chat completions, completions and responses; ``None`` where there is no text."""
        body = self.body or {}
        parts = [
            content.get("text")
            for item in _dicts(body.get("output"))
            for content in _dicts(item.get("content"))
            if content.get("type") == "output_text"
        ]
        for choice in _dicts(body.get("choices"))[:1]:
            parts.append((_member(choice, "message") or {}).get("content", choice.get("text")))
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None


def missing(custom_id: str) -> Result:
    message = "The request is neither in the output file nor in the error file of its batch."
    return Result(custom_id, ok=False, error_code=MISSING, error_message=message)


def read_result(line: bytes) -> Result:
    """A line of an output or error file.

    Raises:
        ValueError: it is none.
    """
    result = json.loads(line)
    if not isinstance(result, dict):
        raise ValueError("not a JSON object")
    members = cast("dict[str, Any]", result)
    custom_id = members.get("custom_id")
    if not isinstance(custom_id, str):
        raise ValueError("no custom_id")
    response = _member(members, "response") or {}
    status, body = response.get("status_code"), _member(response, "body")
    if not isinstance(status, int) or status <= 0:  # OpenAI writes 0 where nothing answered
        status = None
    if status is not None and 200 <= status < 300 and not members.get("error"):
        return Result(custom_id, True, status, body)
    said, answered = _error(members), _error(body)
    code = said.get("code") or answered.get("code") or answered.get("type") or said.get("type")
    message = said.get("message") or answered.get("message")
    without = f"HTTP status {status}" if status is not None else "no answer, and no reason given"
    fallback = f"http_{status}" if status is not None else "no_response"
    return Result(custom_id, False, status, body, str(code or fallback), str(message or without))


def _error(holder: dict[str, Any] | None) -> dict[str, Any]:
    """The ``error`` of an object. Some servers have a text there, or say it without an envelope."""
    error = (holder or {}).get("error")
    if isinstance(error, str):
        return {"message": error}
    return _member(holder, "error") or {}


def _member(holder: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    member = (holder or {}).get(name)
    return cast("dict[str, Any]", member) if isinstance(member, dict) else None


def _dicts(items: object) -> list[dict[str, Any]]:
    return [item for item in cast("list[Any]", items) if isinstance(item, dict)] if isinstance(items, list) else []


def write_requests(requests: Iterable[Request], endpoint: str | None, target: BinaryIO) -> tuple[str, list[str]]:
    """Write an input file; returns its endpoint and the custom_ids in order.

    Args:
        requests: taken one at a time.
        endpoint: ``None`` takes that of the first request, or chat completions where it names none.
        target: where to.

    Raises:
        ValueError: there is no request, a custom_id is no text or comes twice, or a body is not JSON.
    """
    custom_ids: dict[str, None] = {}
    for request in requests:
        line = {"custom_id": request[0], "body": request[1]} if isinstance(request, tuple) else dict(request)
        custom_id, body = line.get("custom_id"), line.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            raise ValueError(f"request {len(custom_ids) + 1}: custom_id is not a text: {custom_id!r:.100}")
        if custom_id in custom_ids:
            raise ValueError(f"custom_id {custom_id!r:.100} is used twice")
        if not isinstance(body, Mapping):
            raise ValueError(f"request {custom_id!r:.100}: body is not a dict")
        custom_ids[custom_id] = None
        endpoint = endpoint or str(line.get("url") or CHAT)
        line = {"custom_id": custom_id, "method": "POST", "url": endpoint, **line}
        try:
            target.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise ValueError(f"request {custom_id!r:.100} cannot be written as JSON: {error}") from error
    if not custom_ids:
        raise ValueError("there is no request")
    return endpoint or CHAT, list(custom_ids)


def endpoint_of(path: Path) -> str:
    """The endpoint that the first request of an input names; empty if it cannot be told."""
    with path.open("rb") as file:
        for line in file:
            if line.removeprefix(_BOM).strip():
                return _text_in(line, "url")
    return ""


def custom_id_of(line: bytes) -> str:
    """Of a line of an input file; empty if it cannot be told."""
    return _text_in(line, "custom_id")


def _text_in(line: bytes, name: str) -> str:
    try:
        members = json.loads(line.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return ""
    text = cast("dict[str, Any]", members).get(name) if isinstance(members, dict) else None
    return text if isinstance(text, str) else ""
