"""Downloads that break and are resumed: by curl, and by our own commands."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.e2e.processes import finished, submit
from tests.e2e.shared_dev import SharedDev
from tests.fakes.cutting_proxy import cutting_proxy
from tests.integration.stack import requests


def port_of(client: AsyncOpenAI) -> int:
    port = client.base_url.port
    assert port
    return port


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_curl_resumes(server: SharedDev, tmp_path: Path) -> None:
    content = b"".join(b'{"n": %d}\n' % number for number in range(200_000))
    file = await server.client.files.create(file=("in.jsonl", content), purpose="user_data")
    target = tmp_path / "out.jsonl"
    async with cutting_proxy(port_of(server.client), 1_000_000) as proxy:
        url = f"{proxy.address}/v1/files/{file.id}/content"
        codes: list[int] = []
        while not codes or (codes[-1] != 0 and len(codes) < 10):
            curl = ["curl", "--silent", "--show-error", "--fail", "-C", "-", "-o", str(target), url]
            codes.append(await (await server.launcher.program("curl", curl, {})).wait())
    assert codes == [18, 18, 0]  # 18: a partial file
    assert target.read_bytes() == content
    assert proxy.cut == 2


async def test_results_resume(server: SharedDev, tmp_path: Path) -> None:
    batch_id = await submit(server.client, requests(200))
    output = (await finished(server.client, batch_id)).batch.output_file_id
    assert output
    content = (await server.client.files.content(output)).content
    assert len(content) > 60_000
    target = tmp_path / "out.jsonl"
    async with cutting_proxy(port_of(server.client), 25_000) as proxy:
        arguments = ["results", "--base-url", f"{proxy.address}/v1", batch_id, "-o", str(target)]
        child = await server.launcher.start(*arguments)
        assert await child.wait(60) == 0, child.stderr
    assert target.read_bytes() == content
    assert proxy.cut >= len(content) // 25_000
    assert "the server is unavailable" in child.stderr
    assert os.listdir(tmp_path) == ["out.jsonl"]
