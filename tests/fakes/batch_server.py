"""A Batch API that is a function: what a client of it sends is kept, what it answers is given."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client, DefaultHttpx2Client, OpenAI

Answer = Callable[[httpx2.Request], httpx2.Response]


class BatchServer:
    """Files and batches in memory. ``failures`` answer first, one for each call, whichever it is.

    A batch of :meth:`add` is looked at through ``versions``: one for each look, the last from then on.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.requests: list[httpx2.Request] = []
        self.failures: list[Answer | None] = []
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.created: list[dict[str, Any]] = []
        self.on_create: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.pages: list[bytes] = []
        """Of the results of a batch, each with its place as the cursor of the one before."""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path.removeprefix("/v1")
        self.asked.append(f"{request.method} {path}")
        self.requests.append(request)
        body = request.read()
        failure = self.failures.pop(0) if self.failures else None
        return failure(request) if failure else self._answer(request, path, body)

    def _answer(self, request: httpx2.Request, path: str, body: bytes) -> httpx2.Response:
        _, kind, *rest = path.split("/")
        match request.method, kind, rest:
            case "POST", "files", []:
                file_id = f"file-{len(self.files)}"
                self.files[file_id] = body.split(b"\r\n\r\n")[-1].rpartition(b"\r\n--")[0]
                return _json({"id": file_id, "object": "file"})
            case "GET", "files", [file_id, "content"] if file_id in self.files:
                return httpx2.Response(200, content=self.files[file_id])
            case "POST", "batches", []:
                batch_id = f"batch_{len(self.versions)}"
                self.created.append(json.loads(body))
                self.add(batch_id, {**self.created[-1], **self.on_create})
                return _json(self.versions[batch_id][0])
            case "GET", "batches", []:
                return _json(self._page(request.url.params))
            case "GET", "batches", [batch_id] if batch_id in self.versions:
                versions = self.versions[batch_id]
                return _json(versions.pop(0) if len(versions) > 1 else versions[0])
            case "GET", "batches", [_, "results"] if self.pages:
                place = int(request.url.params["after"])
                is_last = "true" if place < len(self.pages) - 1 else "false"
                headers = {"Everbatch-Cursor": str(place + 1), "X-Incomplete": is_last}
                return httpx2.Response(200, content=self.pages[place], headers=headers)
            case "POST", "batches", [first, "retry"] if first in self.versions:
                batch_id = f"batch_{len(self.versions)}"
                self.created.append({"retry_of": first, **json.loads(body)})
                self.add(batch_id, self.on_create)
                return _json(self.versions[batch_id][0])
            case "GET", "batches", [batch_id, "events"] if batch_id in self.versions:
                return _json({"object": "list", "data": self.events})
            case "POST", "batches", [batch_id, "pause" | "resume"] if batch_id in self.versions:
                return _json(self.versions[batch_id][0])
            case "POST", "batches", [batch_id, "cancel"] if batch_id in self.versions:
                return _json({**self.versions[batch_id][0], "status": "cancelling"})
            case _:
                return error(404, f"Nothing at {path}")(request)

    def _page(self, parameters: httpx2.QueryParams) -> dict[str, Any]:
        newest_first = [versions[0] for versions in self.versions.values()][::-1]
        ids = [batch["id"] for batch in newest_first]
        start = ids.index(parameters["after"]) + 1 if "after" in parameters else 0
        page = newest_first[start : start + int(parameters["limit"])]
        return {"object": "list", "data": page, "has_more": start + len(page) < len(ids)}

    def add(self, batch_id: str, *versions: dict[str, Any]) -> None:
        """Args: ``versions`` name what is not as in :func:`batch`."""
        self.versions[batch_id] = [batch(batch_id) | version for version in versions or ({},)]

    def openai(self) -> OpenAI:
        http = DefaultHttpx2Client(transport=httpx2.MockTransport(self))
        return OpenAI(api_key="none", base_url="http://test/v1", http_client=http)

    def async_openai(self) -> AsyncOpenAI:
        http = DefaultAsyncHttpx2Client(transport=httpx2.MockTransport(self))
        return AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http)


def batch(batch_id: str) -> dict[str, Any]:
    """One that has just been completed, without files."""
    return {
        "id": batch_id,
        "object": "batch",
        "status": "completed",
        "input_file_id": "file-in",
        "output_file_id": None,
        "error_file_id": None,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "created_at": 1,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    }


def counts(total: int, completed: int, failed: int = 0) -> dict[str, Any]:
    return {"request_counts": {"total": total, "completed": completed, "failed": failed}}


def lines(*members: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in members)


def answered(custom_id: str, text: str = "yes", status: int = 200) -> dict[str, Any]:
    """An output line."""
    body = {"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 3}}
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}


# Failures


def refused(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("Connection refused", request=request)


def error(status: int, message: str = "Not now.", code: str | None = None, **headers: str) -> Answer:
    """Args: ``headers`` have underscores in place of hyphens."""
    content = {"error": {"message": message, "type": "x", "param": None, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx2.Response(status, json=content, headers=named)


def cut_off(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, stream=_CutOff())


def error_page(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(503, html="<p>Busy</p>" * 1000)


def web_page(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, html="<p>Hello</p>")


class _CutOff(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"half of "
        raise httpx2.RemoteProtocolError("peer closed connection")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def _json(content: dict[str, Any]) -> httpx2.Response:
    return httpx2.Response(200, json=content)
