"""One tenant's requests are bounded, and nobody else's wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from api.http import tenant_turns
from api.http.tenant_turns import Kind, kind_of
from api.tenants.key_editing import create_key
from api.tenants.keys import KeyFile
from tests.fakes.api import Api, error_of, field, file, form, open_api


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, dict[str, str]]:
    path = tmp_path / "keys.toml"
    return {name: {"authorization": f"Bearer {create_key(path, name)[1]}"} for name in ("a", "b")}


@pytest.fixture
def api(tmp_path: Path, keys: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setattr(Kind, "patience", 0.2)
    return open_api(tmp_path / "store", KeyFile(tmp_path / "keys.toml"))


BODY, FORM = form(field("purpose", "batch"), file(b"{}\n"))


class Slow:
    """Uploads that do not end before they may."""

    def __init__(self, api: Api, headers: dict[str, str], count: int) -> None:
        self._go_on = asyncio.Event()
        self.answers = [
            asyncio.create_task(api.http.post("/v1/files", content=self._body(), headers=headers | FORM))
            for _ in range(count)
        ]

    async def _body(self) -> AsyncIterator[bytes]:
        yield BODY[:50]
        await self._go_on.wait()
        yield BODY[50:]

    async def end(self) -> list[httpx2.Response]:
        self._go_on.set()
        return await asyncio.gather(*self.answers)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ("POST /v1/files", Kind.TRANSFER),
        ("POST /v1/uploads/upload_1/parts", Kind.TRANSFER),
        ("GET /v1/files/file-1/content", Kind.TRANSFER),
        ("GET /v1/batches", Kind.LIST),
        ("GET /v1/batches/batch_1", Kind.OTHER),
        ("POST /v1/batches", Kind.OTHER),
        ("POST /v1/messages/batches", Kind.TRANSFER),
        ("GET /v1/messages/batches/msgbatch_x/results", Kind.TRANSFER),
        ("GET /v1/messages/batches", Kind.LIST),
        ("GET /v1/messages/batches/msgbatch_x", Kind.OTHER),
    ],
)
def test_kinds(asked: str, kind: Kind) -> None:
    assert kind_of(*asked.split(" ")) is kind


async def test_a_tenant_with_many_uploads_makes_only_itself_wait(api: Api, keys: dict[str, dict[str, str]]) -> None:
    slow = Slow(api, keys["a"], Kind.TRANSFER.maximum)
    await asyncio.sleep(0.05)
    refused = await api.http.post("/v1/files", content=BODY, headers=keys["a"] | FORM)
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "5"
    assert (await api.http.post("/v1/files", content=BODY, headers=keys["b"] | FORM)).status_code == 200
    assert (await api.http.get("/v1/files", headers=keys["a"])).status_code == 200
    assert [answer.status_code for answer in await slow.end()] == [200] * Kind.TRANSFER.maximum
    assert (await api.http.post("/v1/files", content=BODY, headers=keys["a"] | FORM)).status_code == 200


async def test_what_is_too_much_waits_its_turn(api: Api, keys: dict[str, dict[str, str]]) -> None:
    slow = Slow(api, keys["a"], Kind.TRANSFER.maximum + 3)
    await asyncio.sleep(0.05)
    assert {answer.status_code for answer in await slow.end()} == {200}


async def test_a_flood_is_refused_at_once(
    api: Api, keys: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_turns, "MAX_WAITING", 0)
    monkeypatch.setattr(Kind, "patience", 60)
    slow = Slow(api, keys["a"], Kind.TRANSFER.maximum)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        refused = await api.http.post("/v1/files", content=BODY, headers=keys["a"] | FORM)
    assert refused.status_code == 429
    await slow.end()
