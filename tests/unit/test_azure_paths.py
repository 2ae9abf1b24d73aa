"""The stock client for Azure, by its own paths and its own header."""

from __future__ import annotations

from pathlib import Path

import httpx2
import openai
import pytest
from openai import AsyncAzureOpenAI, DefaultAsyncHttpx2Client

from api.tenants.key_editing import create_key
from api.tenants.keys import KeyFile
from tests.fakes.api import Api, open_api


@pytest.fixture
def key(tmp_path: Path) -> str:
    return create_key(tmp_path / "keys.toml", "team")[1]


@pytest.fixture
def api(tmp_path: Path, key: str) -> Api:
    return open_api(tmp_path / "store", KeyFile(tmp_path / "keys.toml"))


def azure(api: Api, key: str) -> AsyncAzureOpenAI:
    http = DefaultAsyncHttpx2Client(transport=httpx2.ASGITransport(api.app))
    return AsyncAzureOpenAI(
        azure_endpoint="http://localhost", api_key=key, api_version="2024-10-21", http_client=http, max_retries=0
    )


async def test_files_and_batches_by_azures_paths(api: Api, key: str) -> None:
    client = azure(api, key)
    file = await client.files.create(file=("in.jsonl", b'{"custom_id": "a"}\n'), purpose="batch")
    assert (await client.files.content(file.id)).content == b'{"custom_id": "a"}\n'
    batch = await client.batches.create(
        input_file_id=file.id,
        endpoint="/chat/completions",  # pyright: ignore[reportArgumentType] - as Azure's guide has it
        completion_window="24h",
    )
    assert batch.endpoint == "/v1/chat/completions"
    assert (await client.batches.retrieve(batch.id)).id == batch.id
    assert [one.id async for one in client.batches.list()] == [batch.id]
    assert [one.id async for one in client.files.list()] == [file.id]
    assert (await client.batches.cancel(batch.id)).status == "cancelling"
    assert [model.id async for model in client.models.list()] == ["org/m"]
    with pytest.raises(openai.AuthenticationError):
        await azure(api, "wrong").files.retrieve(file.id)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/openai/v1/files?api-version=preview", 200),
        ("/openai/files?api-version=x", 200),
        ("/openai/v1/nothing", 404),
        ("/openai/health", 404),
        ("/openai", 404),
        ("/openai/v1/v1/files", 404),
    ],
)
async def test_which_paths_there_are(api: Api, key: str, path: str, status: int) -> None:
    assert (await api.http.get(path, headers={"api-key": key})).status_code == status
    if status == 200:
        assert (await api.http.get(path)).status_code == 401
