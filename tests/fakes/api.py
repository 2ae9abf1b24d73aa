"""The API in this process: a store in a folder, a gateway without Temporal, clients without sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client

from activities.settings import Settings
from activities.store.local import LocalStore
from activities.upstreams.config import Upstream
from activities.upstreams.errors import UpstreamUnavailableError
from api.app import create_app
from api.tenants.keys import KeyFile
from tests.fakes.gateway import FakeGateway


class FakeModels:
    def __init__(self) -> None:
        self.upstream = Upstream(name="default", urls=("http://10.0.0.1/v1",))
        self.answer: tuple[int, bytes] | None = (200, b'{"object":"list","data":[{"id":"org/m","object":"model"}]}')

    async def get_models_raw(self) -> tuple[int, bytes]:
        if self.answer is None:
            raise UpstreamUnavailableError("the inference server at http://10.0.0.1 does not answer")
        return self.answer


@dataclass
class Api:
    folder: Path
    settings: Settings
    store: LocalStore
    gateway: FakeGateway
    models: FakeModels
    app: FastAPI
    http: httpx2.AsyncClient
    openai: AsyncOpenAI

    def stored(self) -> list[str]:
        """Every file below the store's folder, temporary ones too; the janitor's reminders are empty and stay."""
        names = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return [name for name in names if not name.startswith("due/")]


def open_api(folder: Path, keys: KeyFile | None = None, **settings: Any) -> Api:
    configuration = Settings(store=str(folder), **settings)
    store = LocalStore(str(folder))
    gateway = FakeGateway(store)
    models = FakeModels()
    app = create_app(configuration, gateway, store, [models], keys)
    transport = httpx2.ASGITransport(app)
    http = httpx2.AsyncClient(transport=transport, base_url="http://localhost")
    openai = AsyncOpenAI(
        api_key="none",
        base_url="http://localhost/v1",
        http_client=DefaultAsyncHttpx2Client(transport=transport),
        max_retries=0,
    )
    return Api(folder, configuration, store, gateway, models, app, http, openai)


def form(*parts: tuple[str, bytes], boundary: str = "b0") -> tuple[bytes, dict[str, str]]:
    """A multipart body of (headers, content) parts, and the header that goes with it."""
    body = b"".join(
        b"--" + boundary.encode() + b"\r\n" + headers.encode() + b"\r\n\r\n" + content + b"\r\n"
        for headers, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), {"content-type": f"multipart/form-data; boundary={boundary}"}


def field(name: str, value: str) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', value.encode()


def file(
    content: bytes, disposition: str = 'filename="in.jsonl"', kind: str = "application/jsonl"
) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="file"; {disposition}\r\nContent-Type: {kind}', content


async def chunked(body: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """A body without a declared length."""
    for start in range(0, len(body), size):
        yield body[start : start + size]


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error of an answer, once it is sure to be the envelope and to have a request id."""
    envelope = json.loads(response.content)
    assert list(envelope) == ["error"]
    assert set(envelope["error"]) == {"message", "type", "param", "code"}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    return envelope["error"]
