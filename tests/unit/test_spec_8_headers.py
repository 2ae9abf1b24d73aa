"""SPEC.md section 8, what test_api_errors.py does not hold: docs/contract.md says which test holds which rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from activities.storage import StoreError
from tests.fakes.api import Api, open_api
from workflows.types import BatchPhase, BatchStatus

GOOD: dict[str, Any] = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
KEY = {"authorization": "Bearer none"}


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path)


async def test_8_files_are_for_any_origin_that_has_a_key(api: Api) -> None:
    for path in ("/v1/files", "/v1/files/file-x", "/v1/files/file-x/content"):
        for key in (KEY, {"api-key": "none"}):
            assert (await api.http.get(path, headers=key)).headers["access-control-allow-origin"] == "*"
        # Without a key any web page could read what a server on this machine holds.
        assert "access-control-allow-origin" not in (await api.http.get(path)).headers


async def test_8_nothing_but_files_is_for_any_origin(api: Api) -> None:
    for path in ("/v1/batches", "/v1/models", "/v1/filesystem", "/health", "/openapi.json"):
        assert "access-control-allow-origin" not in (await api.http.get(path, headers=KEY)).headers


async def test_8_browsers_that_ask_first_get_no_leave(api: Api) -> None:
    headers = {"origin": "http://evil", "access-control-request-method": "GET"}
    response = await api.http.request(
        "OPTIONS", "/v1/files", headers=headers | {"access-control-request-headers": "authorization"}
    )
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers


async def test_8_every_permanent_409_says_not_to_retry(api: Api) -> None:
    for phase in (BatchPhase.COMPLETED, BatchPhase.FAILED, BatchPhase.EXPIRED):
        batch = await api.openai.batches.create(**GOOD)
        view = await api.gateway.find("default", batch.id)
        api.gateway.set_status(view.record, BatchStatus(phase=phase))
        for action in ("cancel", "pause", "resume"):
            response = await api.http.post(f"/v1/batches/{batch.id}/{action}")
            assert (response.status_code, response.headers["x-should-retry"]) == (409, "false")


async def test_8_every_503_says_when_to_come_again_and_soon(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.gateway.down = True
    answers = [await api.http.post("/v1/batches", json=GOOD)]

    def fail(*_: Any, **__: Any) -> Any:
        raise StoreError("gone")

    for name in ("get", "list", "writer", "put"):
        monkeypatch.setattr(api.store, name, fail)
    for path in ("/v1/files", "/v1/files/file-x", "/v1/files/file-x/content", "/v1/batches", "/v1/batches/batch_x"):
        answers.append(await api.http.get(path))
    api.models.answer = None
    answers.append(await api.http.get("/v1/models"))
    for answer in answers:
        assert answer.status_code == 503
        # A client of before August 2026 honours 60 s at most, and a newer one 120.
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert "x-should-retry" not in answer.headers
