"""Writes the request lines and reads the result lines of a batch's files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

CHAT: Final = "/v1/chat/completions"

Request = str | tuple[str, Mapping[str, Any]] | Mapping[str, Any]
"""A prompt; a pair ``(custom_id, body)``; a whole line of an input file, in which ``method`` and ``url`` are optional;
or a row with a ``prompt`` and no ``body``, of which only the ``prompt`` and an optional ``custom_id`` are used.
"""

Requests = str | os.PathLike[str] | Iterable[Request]
"""The path of an input file, an iterable of requests, or a data frame whose rows have a ``prompt`` (pandas, polars,
pyarrow)."""

WANTED: Final = (
    "requests must be the path of an input file, or a list (or any other iterable) of prompts, of (custom_id, body) "
    'pairs, or of dicts with "custom_id" and "body", or with "prompt"'
)

MISSING: Final = "missing"
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Result:
    """The result of one request."""

    custom_id: str
    ok: bool
    """Whether the request succeeded: its status is 200 to 299, and neither its line nor its body holds an error."""
    status_code: int | None = None
    """The HTTP status; ``None`` if no server responded."""
    body: dict[str, Any] | None = None
    """The response body as it was received, errors included. ``ChatCompletion.model_validate(body)`` adds types."""
    error_code: str | None = None
    """``None`` if and only if ``ok``. ``missing`` if neither result file contains the request."""
    error_message: str | None = None

    @property
    def usage(self) -> dict[str, Any] | None:
        """The token usage that the body reports, in the endpoint's own format; ``None`` if it reports none."""
        return _member(self.body, "usage")

    @property
    def text(self) -> str | None:
        """The generated text of a chat completion, completion, response or message; ``None`` if there is no text."""
        body = self.body or {}
        parts = [
            content.get("text")
            for item in _dicts(body.get("output"))
            for content in _dicts(item.get("content"))
            if content.get("type") == "output_text"
        ]
        parts += [content.get("text") for content in _dicts(body.get("content")) if content.get("type") == "text"]
        for choice in _dicts(body.get("choices"))[:1]:
            parts.append((_member(choice, "message") or {}).get("content", choice.get("text")))
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None


@dataclass(frozen=True)
class ResultPage:
    """A page of a batch's results, in the order in which they were committed."""

    content: bytes
    """Lines in the format of the output and error files."""
    cursor: str
    """The position of the next page. Store it together with the results, to resume from there."""
    is_last: bool

    def results(self) -> list[Result]:
        """Parse the lines of the page.

        Raises:
            ValueError: a line is not a result.
        """
        return [read_result(line) for line in self.content.splitlines() if line.strip()]


def missing(custom_id: str) -> Result:
    message = "The request is neither in the output file nor in the error file of its batch."
    return Result(custom_id, ok=False, error_code=MISSING, error_message=message)


def read_result(line: bytes) -> Result:
    """Parse a line of an output or error file.

    Raises:
        ValueError: ``line`` is not a result.
    """
    result = json.loads(line)
    if not isinstance(result, dict):
        raise ValueError("not a JSON object")
    members = cast("dict[str, Any]", result)
    custom_id = members.get("custom_id", 0)
    if custom_id is None:  # the input line was too large to be parsed
        custom_id = ""
    if not isinstance(custom_id, str):
        raise ValueError("no custom_id")
    response = _member(members, "response") or {}
    status, body = response.get("status_code"), _member(response, "body")
    if not isinstance(status, int) or status <= 0:  # OpenAI writes 0 if there was no response
        status = None
    if status is not None and 200 <= status < 300 and not members.get("error") and not _is_only_error(body):
        return Result(custom_id, True, status, body)
    said, answered = _error(members), _error(body)
    code = said.get("code") or answered.get("code") or answered.get("type") or said.get("type")
    message = said.get("message") or answered.get("message")
    without = f"HTTP status {status}" if status is not None else "no answer, and no reason given"
    fallback = f"http_{status}" if status is not None else "no_response"
    return Result(custom_id, False, status, body, str(code or fallback), str(message or without))


def _is_only_error(body: dict[str, Any] | None) -> bool:
    """Return whether a body is only an error, which some servers send with status 200.

    An ``error`` member alone does not show this: the bodies of ``/v1/responses`` have one beside their output.
    """
    if not body or not isinstance(body.get("error"), (dict, str)) or body["error"] == "":
        return False
    if "choices" in body and body["choices"] is None:
        return True
    return all(body.get(name) is None for name in ("choices", "data", "results", "output"))


def _error(holder: dict[str, Any] | None) -> dict[str, Any]:
    """Return the ``error`` of an object as a dict. Some servers send plain text instead of a dict."""
    error = (holder or {}).get("error")
    if isinstance(error, str):
        return {"message": error}
    return _member(holder, "error") or {}


def _member(holder: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    member = (holder or {}).get(name)
    return cast("dict[str, Any]", member) if isinstance(member, dict) else None


def _dicts(items: object) -> list[dict[str, Any]]:
    return [item for item in cast("list[Any]", items) if isinstance(item, dict)] if isinstance(items, list) else []


def path_of(requests: Requests) -> Path | None:
    """Return the path if ``requests`` is the path of an input file, or ``None`` if it is an iterable of requests.

    Raises:
        ValueError: ``requests`` is neither, or it is a text and no file has that name.
    """
    if isinstance(requests, (str, os.PathLike)):
        path = Path(requests)
        if isinstance(requests, str) and not _is_there(path):
            raise ValueError(
                f"there is no file {requests!r:.100}. A single prompt goes into a list: [{requests!r:.60}]"
            )
        return path
    given = cast("object", requests)
    if isinstance(given, (Mapping, bytes, bytearray)) or not isinstance(given, Iterable):
        raise ValueError(f"{WANTED}, not a {type(requests).__name__}")
    return None


def rows_of(requests: Any) -> Iterable[object]:
    """Return an iterable of requests. Iterating over a data frame itself would yield its columns or their names."""
    if not hasattr(requests, "columns"):
        return requests
    if hasattr(requests, "iter_rows"):  # polars
        return requests.iter_rows(named=True)
    if hasattr(requests, "to_pylist"):  # pyarrow
        return requests.to_pylist()
    if hasattr(requests, "to_dict"):  # pandas
        return requests.to_dict("records")
    raise ValueError(f"{WANTED}, not a {type(requests).__name__}")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a long prompt is not a valid file name
        return False


class InputWriter:
    """Writes the lines of an input file.

    Without ``endpoint``, all requests are for that of the first one, or for chat completions if it names none.
    ``model`` is for prompts, and for bodies that name none.
    """

    def __init__(self, target: BinaryIO, endpoint: str | None, model: str | None) -> None:
        self._target = target
        self._endpoint = endpoint
        self._model = model
        self._custom_ids: dict[str, None] = {}

    def add(self, request: object) -> None:
        """Write one request.

        Raises:
            ValueError: ``request`` is not a request, its custom_id is missing or was used before, or its body cannot
                be written as JSON.
        """
        number = len(self._custom_ids) + 1
        line = self._line(request, number)
        custom_id, body = line.get("custom_id"), line.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            raise ValueError(f"request {number}: custom_id is not a text: {custom_id!r:.100}; {WANTED}")
        if custom_id in self._custom_ids:
            raise ValueError(f"custom_id {custom_id!r:.100} is used twice")
        if not isinstance(body, Mapping):
            raise ValueError(f"request {custom_id!r:.100}: body is not a dict; {WANTED}")
        self._custom_ids[custom_id] = None
        self._endpoint = self._endpoint or str(line.get("url") or CHAT)
        line = {"custom_id": custom_id, "method": "POST", "url": self._endpoint, **line}
        if self._model:
            line["body"] = {"model": self._model, **cast("Mapping[str, Any]", body)}
        try:
            self._target.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise ValueError(f"request {custom_id!r:.100} cannot be written as JSON: {error}") from error

    def _line(self, request: object, number: int) -> dict[str, Any]:
        if isinstance(request, str):
            self._endpoint = self._endpoint or CHAT
            return {"custom_id": f"prompt-{number}", "body": self._prompt_body(request)}
        if isinstance(request, Mapping):
            row = cast("Mapping[str, Any]", request)
            if "body" in row or not isinstance(row.get("prompt"), str):
                return dict(row)
            self._endpoint = self._endpoint or CHAT
            return {"custom_id": row.get("custom_id", f"prompt-{number}"), "body": self._prompt_body(row["prompt"])}
        if isinstance(request, tuple | list) and len(cast("Sequence[Any]", request)) == 2:
            return dict(zip(("custom_id", "body"), cast("Sequence[Any]", request), strict=True))
        raise ValueError(f"request {number} is {request!r:.100}; {WANTED}")

    def _prompt_body(self, prompt: str) -> dict[str, Any]:
        if not self._model:
            raise ValueError('a list of prompts needs the name of a model: model="…"')
        match self._endpoint:
            case "/v1/chat/completions":
                return {"messages": [{"role": "user", "content": prompt}]}
            case "/v1/completions":
                return {"prompt": prompt}
            case "/v1/responses" | "/v1/embeddings" | "/v1/moderations":
                return {"input": prompt}
            case _:
                raise ValueError(f"prompts cannot be turned into requests for {self._endpoint}; give whole bodies")

    def end(self) -> tuple[str, list[str]]:
        """Return the endpoint, and the custom_ids in the order of the requests.

        Raises:
            ValueError: no request was added.
        """
        if not self._custom_ids:
            raise ValueError("there is no request")
        return self._endpoint or CHAT, list(self._custom_ids)


def endpoint_of(path: Path) -> str:
    """Return the url of the first request in an input file; empty if it has none or is invalid."""
    with path.open("rb") as file:
        for line in file:
            if line.removeprefix(_BOM).strip():
                return _text_in(line, "url")
    return ""


def custom_id_of(line: bytes) -> str:
    """Return the custom_id in a line of a batch's file; empty if it has none or is invalid."""
    return _text_in(line, "custom_id")


def _text_in(line: bytes, name: str) -> str:
    try:
        members = json.loads(line.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return ""
    text = cast("dict[str, Any]", members).get(name) if isinstance(members, dict) else None
    return text if isinstance(text, str) else ""
