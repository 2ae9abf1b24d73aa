"""The web page in headless Chromium: every path that a person clicks, and what it may and may not load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api.client import TERMINAL
from api.http.server import listen, serve
from api.tenants.key_editing import create_key
from tests.integration.browser import Page, chromium, find_chromium
from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, jsonl, request, requests

SCREENSHOTS = os.environ.get("EVERBATCH_SCREENSHOTS", "")
"""A folder that the screenshots are written to, to be looked at."""


@pytest.fixture
async def page(tmp_path: Path) -> AsyncGenerator[Page]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium is installed, which this test looks at the page with (Debian: apt install chromium)")
    folder = tmp_path / "browser"
    folder.mkdir()
    async with chromium(binary, folder) as page:
        await page.look(1200, 800)
        yield page


@contextlib.asynccontextmanager
async def served(it: Stack) -> AsyncGenerator[str]:
    """The address of the stack's API on a real socket."""
    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(serve(it.app, listener, stop))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            stop.set()
            await serving


async def shot(page: Page, name: str) -> None:
    if SCREENSHOTS:
        await page.screenshot(Path(SCREENSHOTS) / f"{name}.png")


async def newest(it: Stack, **headers: str) -> Any:
    return (await it.openai.batches.list(limit=1, extra_headers=headers)).data[0]


async def start(page: Page, path: Path) -> None:
    await page.click("New batch")
    await page.until("document.querySelectorAll('#endpoint option').length")
    await page.choose_file("#file", path)
    await page.until("document.querySelector('#name').value")
    await page.click("Start batch")


async def test_a_batch_from_upload_to_retry(stack: MakeStack, page: Page, tmp_path: Path) -> None:
    it = await stack(temporal_ui_url="http://temporal.example/namespaces/default/")
    it.script(mode="hang", match="hangs")
    path = tmp_path / "night.jsonl"
    lines = [request(f"{'hangs' if n % 4 == 0 else 'ok'}-{n}", "/v1/completions") for n in range(8)]
    path.write_bytes(jsonl(lines))
    async with served(it) as url:
        await page.open(url)
        await page.sees("No batches yet")
        await start(page, path)
        await page.sees("6 of 8")
        batch = await newest(it)
        assert (batch.metadata, batch.endpoint) == ({"name": "night"}, "/v1/completions")
        await shot(page, "running")

        # A click that lasts longer than the page takes to draw itself again still counts.
        await page.click("Pause", hold=1.5)
        await page.sees("Resume")
        await page.until("document.querySelector('.state').textContent === 'paused'")
        await page.click("Resume")
        await page.sees("Pause")

        await page.click("Download what is done")
        partial = await page.downloaded(f"{batch.id}_partial.jsonl")
        assert {json.loads(line)["custom_id"] for line in partial.splitlines()} == {
            line["custom_id"] for line in lines if line["custom_id"].startswith("ok")
        }
        temporal = await page.eval("[...document.querySelectorAll('a')].find(a => a.textContent === 'Temporal').href")
        assert temporal == f"http://temporal.example/namespaces/default/workflows/{batch.id}"

        await page.click("Cancel", among="main button")
        await page.click("Keep running")
        await page.click("Cancel", among="main button")
        await page.click("Cancel batch")
        await page.sees("cancelled")
        await page.sees("Cancelled by tenant")
        await page.sees("2 × batch_cancelled")
        await page.sees("This request was not executed because the batch was cancelled.")
        await shot(page, "events")
        first = await it.finished(batch.id)
        await page.click("Download results")
        assert await page.downloaded(f"{batch.id}_output.jsonl") == first.raw_output
        await page.click("Download errors")
        assert await page.downloaded(f"{batch.id}_error.jsonl") == first.raw_errors

        it.script()
        await page.click("Retry 2 failed")
        await page.until("document.querySelector('.state.completed')")
        second = await it.finished((await newest(it)).id)
        assert second.answered == [line["custom_id"] for line in lines]
        await page.sees("Retry of")
        await page.click(batch.id)
        await page.sees("Retried by")
        await page.click("← All batches")
        await page.until("document.querySelectorAll('a.row').length === 2")
        assert "night" in await page.text()
        await page.sees("2 × batch_cancelled")
    assert page.errors == []
    assert {asked for asked in page.requested if not asked.startswith((url, "blob:"))} == set()


async def test_what_the_list_says(stack: MakeStack, page: Page) -> None:
    it = await stack(max_in_flight=8)
    it.script(mode="status", status=503, retry_after=30)
    waiting = await it.submit(requests(40))
    failed = await it.submit(["no JSON", "nor this"])
    hostile = await it.create(await it.upload(requests(1)), metadata={"name": "<img src=x onerror=alert(1)>"})
    async with served(it) as url:
        await it.until(waiting, lambda batch: (batch.model_extra or {})["progress"]["waiting_reason"])
        await it.until(failed, lambda batch: batch.status in TERMINAL)
        await page.open(url)
        await page.until("document.querySelectorAll('a.row').length === 3")
        await page.until("document.querySelector('.waiting')")
        assert "503" in await page.text()
        await page.sees("Line 1: This line is not parseable as valid JSON. (and 1 more)")
        await page.sees("<img src=x onerror=alert(1)>")
        for width, dark in ((1200, False), (1200, True), (390, False), (390, True)):
            await page.look(width, 800, dark=dark)
            assert await page.eval("document.documentElement.scrollWidth") <= width
            await shot(page, f"list-{width}-{'dark' if dark else 'light'}")
        await page.look(1200, 800)
        await page.open(f"{url}#/batches/{failed}")
        await page.sees("Why it failed")
        await page.sees("line 2")
        await shot(page, "failed")
        await page.look(390, 800, dark=True)
        assert await page.eval("document.documentElement.scrollWidth") <= 390
        await shot(page, "failed-narrow")
        await page.open(f"{url}#/batches/batch_x")
        await page.sees("No batch found with id 'batch_x'")
        await page.open(f"{url}docs")
        await page.sees("OpenAPI document")
        assert await page.eval("[...document.links].map(a => a.getAttribute('href'))") == [
            *("./", "openapi.json", "./", "ready")
        ]
        await it.openai.batches.cancel(waiting)
        await it.openai.batches.cancel(hostile.id)
        await it.finished(waiting)
        await it.finished(hostile.id)
    assert [error for error in page.errors if "404" not in error] == []


async def test_a_page_for_those_who_have_a_key(stack: MakeStack, page: Page, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    _, key = create_key(keys, "ann")
    it = await stack(keys_file=str(keys))
    path = tmp_path / "night.jsonl"
    path.write_bytes(jsonl(requests(2)))
    async with served(it) as url:
        await page.open(url)
        await page.sees("This server asks for an API key")
        await page.type("#key", "wrong")
        await page.click("Use key")
        await page.sees("Incorrect API key provided.")
        await shot(page, "key")
        await page.type("#key", key)
        await page.click("Use key")
        await page.sees("No batches yet")
        await start(page, path)
        await page.until("document.querySelector('.state.completed')")
        await page.click("Download results")
        batch = await newest(it, Authorization=f"Bearer {key}")
        assert (await page.downloaded(f"{batch.id}_output.jsonl")).count(b"\n") == 2
        assert await page.eval("[localStorage.length, document.cookie]") == [0, ""]
        assert key not in await page.eval("location.href")
        assert not any(key in asked for asked in page.requested)
        await page.click("Forget key")
        await page.sees("This server asks for an API key")
        assert await page.eval("sessionStorage.length") == 0
    assert [error for error in page.errors if "401" not in error] == []
