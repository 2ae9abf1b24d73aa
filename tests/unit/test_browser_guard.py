"""A server without keys is for the programs of its machine, not for the pages that its browser shows."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from api.tenants.key_editing import create_key
from api.tenants.keys import KeyFile
from tests.fakes.api import Api, error_of, field, file, form, open_api

PAGE = {"host": "localhost:8000"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    return open_api(tmp_path_factory.mktemp("store"), allowed_hosts="batch.lan, OTHER")


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST:1", "a.localhost", "localhost.", "127.0.0.1:8000", "127.9.9.9"),
        *("[::1]", "[::1]:8000", "batch.lan", "Batch.LAN:80", "other"),
    ],
)
async def test_own_names_are_answered(api: Api, host: str) -> None:
    assert (await api.http.get("/v1/files", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "0.0.0.0"),
        *("", "[::2]", "localhost:x", "notlocalhost", "x@localhost", "localhost:80:80", "[localhost]x", "127.1"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/files", "/ready", "/metrics", "/openapi.json", "/nothing"])
async def test_a_page_with_a_rebound_name_reads_nothing(api: Api, host: str, path: str) -> None:
    answer = await api.http.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "EVERBATCH_ALLOWED_HOSTS" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://localhost:8000", "host": "127.0.0.1:8000"},
    ],
)
async def test_pages_of_other_origins_change_nothing(api: Api, headers: dict[str, str]) -> None:
    body, kind = form(field("purpose", "batch"), file(b"{}\n"))
    made = await api.http.post("/v1/files", content=body, headers=PAGE | kind | headers)
    assert made.status_code == 403
    assert error_of(made)["code"] == "origin_not_allowed"
    assert (await api.http.delete("/v1/files/file-x", headers=PAGE | headers)).status_code == 403
    assert api.stored() == []


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_a_page_of_its_own_is_answered(api: Api, site: str) -> None:
    own = PAGE | {"origin": "http://localhost:8000", "sec-fetch-site": site}
    assert (await api.http.get("/v1/files", headers=own)).status_code == 200


async def test_any_name_where_the_operator_says_so(tmp_path: Path) -> None:
    api = open_api(tmp_path, allowed_hosts="*")
    assert (await api.http.get("/v1/files", headers={"host": "evil.example"})).status_code == 200


async def test_with_keys_the_key_is_what_is_asked_for(tmp_path: Path) -> None:
    _, key = create_key(tmp_path / "keys.toml", "a")
    api = open_api(tmp_path / "store", KeyFile(tmp_path / "keys.toml"))
    headers = {"host": "batch.example", "origin": "https://app.example", "authorization": f"Bearer {key}"}
    assert (await api.http.get("/v1/files", headers=headers)).status_code == 200


async def test_a_form_cannot_write_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    api = open_api(tmp_path)
    from api.http.logs import configure_logging

    configure_logging("text")
    logging.getLogger().addHandler(caplog.handler)
    try:
        body, kind = form(field("purpose", "batch"), file(b"{}\n"))
        await api.http.post("/v1/files", content=body + b"\r\nx" * 100_000, headers=kind)
        await api.http.post("/v1/files", content=b"\r\n" * 1000 + body, headers=kind)
    finally:
        logging.getLogger().removeHandler(caplog.handler)
    ours = [record for record in caplog.records if record.name != "httpx2"]
    assert {record.name for record in ours} == {"everbatch.api"}
    assert len(ours) == 2
