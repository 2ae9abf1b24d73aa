"""Results of a batch are read while it runs: each once, also while workers and the API come and go."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, request, requests


class Reader:
    """A client that follows a batch, through one API process after the other."""

    def __init__(self, it: Stack, batch_id: str) -> None:
        self._it = it
        self._url = f"/v1/batches/{batch_id}/results"
        self._after = "0"
        self._looks = 0
        self.lines: list[dict[str, Any]] = []
        self.is_over = False

    @property
    def names(self) -> list[str]:
        return [line["custom_id"] for line in self.lines]

    async def read(self) -> bool:
        """Take the next page; whether it was not empty."""
        self._looks += 1
        if self._looks % 5 == 0:
            self._it.another_http()
        page = await self._it.http.get(self._url, params={"after": self._after, "limit": 40})
        assert page.status_code == 200, page.text
        self._after = page.headers["everbatch-cursor"]
        self.is_over = page.headers["x-incomplete"] == "false"
        self.lines += [json.loads(line) for line in page.content.splitlines()]
        return bool(page.content)


async def test_a_batch_is_followed_through_its_end(stack: MakeStack) -> None:
    it = await stack(latency=0.2, max_in_flight=16)
    it.script(mode="status", status=400, match="r-7", latency=0.2)
    batch_id = await it.submit(requests(300))
    reader = Reader(it, batch_id)

    async def some(count: int) -> None:
        await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed >= count)
        while await reader.read():
            pass
        assert len(reader.names) >= count
        assert not reader.is_over

    await some(40)
    await it.stop_worker()
    await reader.read()
    await it.start_worker()
    await some(120)
    it.script(mode="status", status=400, match="r-7", latency=0.01)
    finished = await it.finished(batch_id)
    while not reader.is_over:
        await reader.read()
    assert len(reader.names) == 300
    by_id = {line["custom_id"]: line for line in reader.lines}
    assert by_id == {line["custom_id"]: line for line in finished.output + finished.errors}
    late = Reader(it, batch_id)  # of a batch that has ended, all in input order
    while not late.is_over:
        await late.read()
    assert late.names == [f"r-{number}" for number in range(300)]


async def test_refusals(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang")
    batch_id = await it.submit(requests(1))

    async def get(path: str) -> httpx2.Response:
        return await it.http.get(f"/v1/batches/{path}")

    assert (await get("batch_x/results")).status_code == 404
    page = await get(f"{batch_id}/results")
    assert (page.content, page.headers["x-incomplete"], page.headers["everbatch-cursor"]) == (b"", "true", "0")
    for after in ("1", "x", "0-0-0"):
        refused = await get(f"{batch_id}/results?after={after}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")
    await it.until(batch_id, lambda _: it.engine.counters().in_flight)
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    page = await get(f"{batch_id}/results?after=0")
    assert (page.content, page.headers["x-incomplete"]) == (finished.raw_errors, "false")
    await it.openai.files.delete(finished.batch.error_file_id or "")
    assert (await get(f"{batch_id}/results")).json()["error"]["code"] == "results_gone"
    failed = await it.finished(await it.submit(["no JSON"]))
    page = await get(f"{failed.batch.id}/results")
    assert (page.content, page.headers["x-incomplete"]) == (b"", "false")


async def test_result_files_of_a_batch_that_runs(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="hangs")
    lines = [request(f"{'hangs' if n % 2 else 'ok'}-{n}") for n in range(20)]
    batch_id = await it.submit(lines)
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 10)
    assert (await it.get(batch_id)).output_file_id is None
    opted = it.openai.with_options(default_headers={"Everbatch-Partial": "true"})
    batch = await opted.batches.retrieve(batch_id)
    assert [one.output_file_id async for one in opted.batches.list()] == [batch.output_file_id]
    file_id = batch.output_file_id
    assert file_id
    assert batch.error_file_id is None
    url = f"/v1/files/{file_id}/content"
    assert (await it.http.get(url)).status_code == 404

    async def read(offset: int) -> tuple[list[str], str, str]:
        answer = await it.http.get(url, params={"offset": offset}, headers={"Everbatch-Partial": "true"})
        assert answer.status_code == 200, answer.text
        names = [json.loads(line)["custom_id"] for line in answer.content.splitlines()]
        return names, answer.headers["x-incomplete"], answer.headers.get("x-last-line", "")

    ok = [f"ok-{n}" for n in range(0, 20, 2)]
    first = await read(0)
    assert (set(first[0]), first[1:]) == (set(ok), ("true", "10"))
    assert await read(7) == (first[0][7:], "true", "10")
    assert await read(10) == ([], "true", "10")
    refused = await it.http.get(url, params={"offset": 11}, headers={"Everbatch-Partial": "true"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "offset")
    it.script()
    await it.stop_worker()  # what hangs is sent again
    await it.start_worker()
    finished = await it.finished(batch_id)
    assert finished.batch.output_file_id == file_id
    rest, *said = await read(7)
    assert (sorted(first[0][:7] + rest), said) == (sorted(finished.answered), ["false", "20"])
    assert await read(20) == ([], "false", "20")
    assert (await read(0))[:2] == (finished.answered, "false")


async def test_an_operator_may_show_result_files_early_to_all(stack: MakeStack) -> None:
    it = await stack(partial_results=True)
    it.script(mode="hang", match="r-1")
    batch_id = await it.submit(requests(2))
    batch = await it.until(batch_id, lambda batch: batch.output_file_id)
    content = await it.openai.files.with_raw_response.content(batch.output_file_id or "")
    assert (content.headers["x-incomplete"], content.headers["x-last-line"]) == ("true", "1")
    assert json.loads(content.content)["custom_id"] == "r-0"
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)
