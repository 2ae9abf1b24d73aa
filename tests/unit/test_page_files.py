"""The web page's files: what they may load, and that they are published with the server."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fakes.api import open_api

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "api" / "page").iterdir())


async def test_the_page_is_served_with_a_policy(tmp_path: Path) -> None:
    api = open_api(tmp_path, temporal_ui_url="https://t.example/namespaces/n/")
    page = await api.http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'data-temporal-ui="https://t.example/namespaces/n"' in page.text
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert "unsafe" not in page.headers["content-security-policy"]
    again = await api.http.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    loaded = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    assert len(loaded) >= 3
    for name in [*loaded, "docs", *(f"page/{path.name}" for path in FILES if path.suffix == ".js")]:
        file = await api.http.get(f"/{name}")
        assert file.status_code == 200, name
        assert file.headers["content-security-policy"] == page.headers["content-security-policy"]
    assert (await api.http.get("/page/../app.py")).status_code == 404


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_inline_or_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"<style|<script(?! type=\"module\" src=)|\sstyle=|\son[a-z]+=\"|javascript:", text) == []
    assert [url for url in re.findall(r"https?://[^\s\"'<]+", text) if url != "http://www.w3.org/2000/svg"] == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|@import", text) == []


def test_the_page_is_in_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("everbatch-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"api/page/{path.name}" for path in FILES} <= names
