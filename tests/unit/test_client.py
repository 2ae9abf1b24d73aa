"""``everbatch submit`` and its client, against a server that is a function."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import DefaultHttpx2Client, OpenAI

from api import client as client_module
from api.client import BatchClient
from api.submit import submit

BATCH: dict[str, Any] = {
    "id": "batch_1",
    "object": "batch",
    "status": "completed",
    "input_file_id": "file-in",
    "output_file_id": "file-out",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "created_at": 1,
}


class CutOff(httpx2.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"half of "
        raise httpx2.RemoteProtocolError("peer closed connection")


class Server:
    """Answers a download by each of ``contents`` in turn, by the last from then on."""

    def __init__(self, *contents: Callable[[], httpx2.Response]) -> None:
        self.contents = list(contents)
        self.asked: list[str] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.asked.append(path)
        if path.endswith("/content"):
            return (self.contents.pop(0) if len(self.contents) > 1 else self.contents[0])()
        request.read()
        return httpx2.Response(200, json={"id": "file-in", "object": "file"} if path == "/v1/files" else BATCH)

    def client(self) -> BatchClient:
        http = DefaultHttpx2Client(transport=httpx2.MockTransport(self))
        return BatchClient(OpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0))


def cut_off() -> httpx2.Response:
    return httpx2.Response(200, stream=CutOff())


def unavailable() -> httpx2.Response:
    return httpx2.Response(503)


def whole() -> httpx2.Response:
    return httpx2.Response(200, content=b"whole")


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "POLL_SECONDS", 0.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"url": "/v1/chat/completions"}) + "\n")
    return path


def test_a_download_that_is_cut_off_is_begun_anew(tmp_path: Path) -> None:
    away: list[str] = []
    path = tmp_path / "out"
    client = Server(cut_off, unavailable, whole).client()
    client.download("file-out", path, lambda error: away.append(type(error).__name__))
    assert path.read_bytes() == b"whole"
    assert away == ["APIConnectionError", "InternalServerError"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_that_is_always_cut_off_ends_in_one_line(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client_module, "PATIENCE_SECONDS", 0.0)
    output = source.parent / "out"
    assert submit(Server(cut_off).client(), source, output, None, None, "24h", None) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("everbatch submit: no connection to http://test/v1/files/file-out/content (peer closed")
    assert last.endswith("; the batch is batch_1")
    assert list(source.parent.iterdir()) == [source]


def test_what_the_server_refuses_is_not_asked_again(tmp_path: Path) -> None:
    server = Server(lambda: httpx2.Response(404))
    with pytest.raises(openai.NotFoundError):
        server.client().download("file-out", tmp_path / "out")
    assert len(server.asked) == 1


@pytest.mark.parametrize("option", ["output", "errors"])
def test_a_folder_that_is_not_there_is_said_before_the_upload(
    source: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    server = Server(whole)
    missing, there = source.parent / "nodir" / "file", source.parent / "file"
    output, errors = (missing, None) if option == "output" else (there, missing)
    assert submit(server.client(), source, output, errors, None, "24h", None) == 1
    assert capsys.readouterr().err == f"{missing}: {missing.parent} is no folder\n"
    assert server.asked == []


def test_a_folder_without_leave_to_write_is_said_before_the_upload(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(whole)

    def may_not(*_: object) -> bool:
        return False

    monkeypatch.setattr(os, "access", may_not)  # root may write anywhere
    assert submit(server.client(), source, source.parent / "out", None, None, "24h", None) == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert server.asked == []
