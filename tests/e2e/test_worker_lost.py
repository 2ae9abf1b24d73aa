"""A request whose answer takes its worker down, each time: it becomes an error line, and the others are answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from activities.shard_run import LOSSES, LOSSES_ALONE
from api.client import TERMINAL
from tests.e2e.engine_log import SECOND, EngineLog
from tests.e2e.faults_table import Matrix, Row
from tests.e2e.processes import Launcher, finished, now
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import CHAT, jsonl, request, requests, until

IN_FLIGHT = 16
COMMIT_SECONDS = 0.2
"""The commit interval, and as much for the commit itself."""
LATENCY = 0.2


@pytest.mark.faults
@pytest.mark.slow_faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [40, 400], ids=["single", "grouped"])
async def test_a_request_that_kills_its_worker_each_time_is_an_error_line(
    cluster: Launcher, tmp_path: Path, matrix: Matrix, count: int
) -> None:
    started = now()
    log = EngineLog(tmp_path / "engine.log")
    lines = requests(count)
    lines[count // 2] = request("killer")
    async with EngineProcess(latency=LATENCY, log=log.path) as engine:
        await engine.control(mode="hang", match="killer")
        cluster.env |= {"EVERBATCH_UPSTREAM_URL": engine.url}
        _, client = await cluster.serve()
        async with client:
            file = await client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            killed = 0

            async def is_over() -> bool:
                return (await client.batches.retrieve(batch.id)).status in TERMINAL

            async def look() -> bool:
                return log.read().received("killer") > killed or await is_over()

            while not await is_over():
                worker = await cluster.worker("--max-in-flight", str(IN_FLIGHT))
                await until(look, "the killer or the end", 60)
                if not await is_over():
                    await worker.kill()
                    killed += 1
            result = await finished(client, batch.id)
    assert result.counts == (count, count - 1, 1)
    assert result.error_codes == {"killer": "worker_lost"}
    assert killed == log.received("killer") == LOSSES + LOSSES_ALONE
    again = log.count("recv") - count - (killed - 1)
    answered_uncommitted = IN_FLIGHT / LATENCY * COMMIT_SECONDS
    assert again <= killed * (IN_FLIGHT + answered_uncommitted), again
    took = (now() - started) / SECOND
    note = f"{killed} workers, then an error line `worker_lost`"
    name = "one request takes its worker down, each time"
    matrix.add(Row("Whose fault", name, count, 0, again, killed * IN_FLIGHT, None, took, note))
