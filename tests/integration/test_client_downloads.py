"""Downloads of both clients over connections that break: whole and of one version, or not there."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIError, AsyncOpenAI, DefaultAsyncHttpx2Client, OpenAI

from activities.configured import open_store
from activities.settings import Settings
from activities.store.object_store import ObjectStore
from api.app import create_app
from api.client import AsyncBatchClient, BatchClient
from tests.fakes.api import FakeModels
from tests.fakes.file_server import Change, FileServer
from tests.fakes.gateway import FakeGateway
from tests.s3_server import BUCKET, S3Server

FIRST = random.Random(1).randbytes(1_000_000)
SECOND = random.Random(2).randbytes(1_500_000)


class Downloader:
    """A client that waits in no time, but keeps account of it."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.slept: list[float] = []

    async def download(self, server: FileServer, path: Path, patience: float = 600.0) -> None:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        def blocking() -> None:
            openai = OpenAI(base_url=server.url, api_key="none")
            with BatchClient(openai, patience=patience, sleep=self.slept.append) as client:
                client.download("file-1", path)

        if self._kind == "blocking":
            await asyncio.to_thread(blocking)
        else:
            openai = AsyncOpenAI(base_url=server.url, api_key="none")
            async with AsyncBatchClient(openai, patience=patience, sleep=sleep) as client:
                await client.download("file-1", path)


@pytest.fixture(params=["blocking", "awaited"])
def downloader(request: pytest.FixtureRequest) -> Downloader:
    return Downloader(request.param)


def asked(server: FileServer, header: str) -> list[str | None]:
    return [headers.get(header) for headers in server.asked]


def nothing(_: FileServer) -> None:
    pass


def changed(content: bytes, tag: str) -> Callable[[FileServer], None]:
    def change(server: FileServer) -> None:
        server.content, server.tag = content, tag

    return change


async def test_a_broken_download_resumes_and_no_byte_is_sent_twice(downloader: Downloader, tmp_path: Path) -> None:
    with FileServer(FIRST, breaks_after=[300_000, 1, 0, 500_000]) as server:
        await downloader.download(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == FIRST
    assert server.sent == len(FIRST)
    starts = [300_000, 300_001, 300_001, 800_001]
    assert asked(server, "range") == [None, *(f"bytes={start}-" for start in starts)]
    assert asked(server, "if-range") == [None] + ['"v1"'] * 4
    assert set(asked(server, "accept-encoding")) == {"identity"}
    assert os.listdir(tmp_path) == ["out"]


async def test_a_file_that_changes_meanwhile_is_never_mixed(downloader: Downloader, tmp_path: Path) -> None:
    changes: list[Change] = [nothing, changed(SECOND, '"v2"')]
    with FileServer(FIRST, breaks_after=[300_000, 400_000], before=changes) as server:
        await downloader.download(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == SECOND
    assert server.asked[2]["range"] == "bytes=400000-"
    assert server.asked[2]["if-range"] == '"v2"'


async def test_only_the_end_is_missing(downloader: Downloader, tmp_path: Path) -> None:
    """All bytes have come, and then the connection broke: the server answers 416 with as many bytes."""
    with FileServer(FIRST, chunked=True, breaks_after=[len(FIRST)]) as server:
        await downloader.download(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == FIRST
    assert server.sent == len(FIRST)
    assert asked(server, "range") == [None, f"bytes={len(FIRST)}-"]


async def test_a_file_that_has_become_shorter_begins_again(downloader: Downloader, tmp_path: Path) -> None:
    changes: list[Change] = [nothing, changed(FIRST[:5], '"v1"')]
    with FileServer(FIRST, chunked=True, breaks_after=[len(FIRST)], before=changes) as server:
        await downloader.download(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == FIRST[:5]


@pytest.mark.parametrize(
    "lies",
    [
        {"Content-Range": "bytes 0-9/1000000"},
        {"Content-Range": "bytes 300000-999999/2000000"},
        {"Content-Range": ""},
        {"ETag": '"v2"'},
        {"ETag": ""},
    ],
    ids=["another part", "another length", "no part", "another version", "no version"],
)
async def test_a_part_that_does_not_fit_is_not_used(
    downloader: Downloader, tmp_path: Path, lies: dict[str, str]
) -> None:
    with FileServer(FIRST, breaks_after=[300_000], lies=lies) as server:
        await downloader.download(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == FIRST
    assert asked(server, "range") == [None, "bytes=300000-", None]


@pytest.mark.parametrize("server", [{"tag": None}, {"tag": 'W/"v1"'}, {"ranges": False}], ids=str)
async def test_without_ranges_a_download_begins_again(
    downloader: Downloader, tmp_path: Path, server: dict[str, Any]
) -> None:
    with FileServer(FIRST, breaks_after=[300_000], **server) as running:
        await downloader.download(running, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == FIRST


async def test_what_is_compressed_all_the_same_begins_again(downloader: Downloader, tmp_path: Path) -> None:
    with FileServer(gzip.compress(FIRST), encoding="gzip", breaks_after=[300_000]) as server:
        await downloader.download(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == FIRST
    assert asked(server, "range") == [None, None]


async def test_patience_is_for_a_download_that_stands_still(downloader: Downloader, tmp_path: Path) -> None:
    """Each attempt of thirty brings some bytes, and with them a new patience of one wait."""
    with FileServer(FIRST, breaks_after=[33_000] * 30) as server:
        await downloader.download(server, tmp_path / "out", patience=0.9)
    assert (tmp_path / "out").read_bytes() == FIRST
    assert downloader.slept == [0.5] * 30


async def test_a_download_that_never_gets_further_ends(downloader: Downloader, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with FileServer(FIRST, tag=None, breaks_after=[33_000] * 100) as server, pytest.raises(APIError):
        await downloader.download(server, tmp_path / "out", patience=3.0)
    assert 2 <= len(server.asked) <= 10
    assert (tmp_path / "out").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


# Against our own API


class Cutting(httpx2.AsyncBaseTransport):
    """Breaks each answer of content after some bytes."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, limit: int) -> None:
        self._inner = inner
        self._limit = limit
        self.statuses: list[int] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if not request.url.path.endswith("/content"):
            return response
        self.statuses.append(response.status_code)
        stream = _Cut(response, self._limit)
        return httpx2.Response(response.status_code, headers=response.headers, stream=stream)


class _Cut(httpx2.AsyncByteStream):
    def __init__(self, response: httpx2.Response, limit: int) -> None:
        self._response = response
        self._left = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_raw():
            yield chunk[: self._left]
            self._left -= len(chunk)
            if self._left <= 0:
                raise httpx2.ReadError("connection reset by peer")

    async def aclose(self) -> None:
        await self._response.aclose()


def on_s3(server: S3Server) -> tuple[Settings, ObjectStore]:
    settings = Settings(store=f"s3://{BUCKET}/downloads", **server.settings)  # pyright: ignore[reportArgumentType]
    return settings, open_store(settings)


async def test_a_file_of_an_s3_store_resumes(s3_server: S3Server, tmp_path: Path) -> None:
    settings, store = on_s3(s3_server)
    app = create_app(settings, FakeGateway(store), store, [FakeModels()], None)
    transport = Cutting(httpx2.ASGITransport(app), 400_000)
    http = DefaultAsyncHttpx2Client(transport=transport)
    openai = AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http)
    content = b'{"custom_id": "a"}\n' + FIRST
    uploaded = await openai.files.create(file=("in.jsonl", content), purpose="user_data")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with AsyncBatchClient(openai, sleep=sleep) as client:
        await client.download(uploaded.id, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    assert transport.statuses == [200, 206, 206]
    assert slept == [0.5, 0.5]
