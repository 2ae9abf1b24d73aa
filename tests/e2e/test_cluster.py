"""The production shape at work: two APIs and two workers on Temporal, Postgres and S3, of which one each is killed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from tests import compose
from tests.e2e.cluster import Cluster, running_cluster
from tests.e2e.cluster_tools import FOLDER
from tests.e2e.engine_log import SECOND, EngineLog
from tests.e2e.faults import COMMIT_INTERVAL, COMMIT_SECONDS, HEARTBEAT_TIMEOUT, undisturbed
from tests.e2e.processes import WORKER_LINE, Child, finished, now, submit
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import requests, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ANSWER_BYTES = 400
BATCHES = {"single": 300, "grouped": 3000}
QUICK = {
    "EVERBATCH_MAX_IN_FLIGHT": "32",
    "EVERBATCH_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
    "EVERBATCH_COMMIT_INTERVAL": str(COMMIT_INTERVAL),
}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncGenerator[EngineProcess]:
    async with EngineProcess(latency=0.1, answer_bytes=ANSWER_BYTES, log=tmp_path / "engine.log") as engine:
        yield engine


@pytest.fixture
async def cluster(engine: EngineProcess, tmp_path: Path) -> AsyncGenerator[Cluster]:
    async with running_cluster(tmp_path / "cluster", engine.url) as cluster:
        yield cluster


async def retention(address: str) -> timedelta:
    client = await Client.connect(address)
    request = DescribeNamespaceRequest(namespace="everbatch")
    described = await client.workflow_service.describe_namespace(request)
    return described.config.workflow_execution_retention_ttl.ToTimedelta()


async def set_up(cluster: Cluster, waiting: list[Child]) -> None:
    """Processes that were there before have said what is missing; twice, because it may be repeated."""
    for child in waiting:
        await child.said(re.compile("namespace everbatch does not exist: run `everbatch setup`"))
    for days in (3, 5):
        done = await cluster.setup(EVERBATCH_RETENTION_DAYS=str(days))
        assert await done.wait() == 0, done.stderr
        assert done.stdout.count("ready: ") == 4
        assert await retention(cluster.temporal_address) == timedelta(days=days)
    for child in waiting:
        await child.said(re.compile(f"connected to Temporal at |{WORKER_LINE.pattern}"))


async def until_answered(log: EngineLog, count: int) -> None:
    async def look() -> bool:
        return len(log.read().answered) >= count

    await until(look, f"{count} answers", 60)


async def check_result(client: AsyncOpenAI, name: str, batch_id: str) -> None:
    """Each line is there once, in order, as if nothing had happened."""
    result = await finished(client, batch_id, 90)
    names = [line["custom_id"] for line in requests(BATCHES[name], prefix=name)]
    assert result.batch.status == "completed"
    assert result.answered == names
    assert {line["custom_id"]: line["response"]["body"] for line in result.output} == undisturbed(names, ANSWER_BYTES)
    assert result.counts == (len(names), len(names), 0)


async def test_one_of_each_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    workers = [await cluster.start("worker", **QUICK) for _ in range(2)]
    (api, client), (_, other) = await asyncio.gather(cluster.api(**QUICK), cluster.api(**QUICK))
    await set_up(cluster, [*workers, api])
    log = EngineLog(tmp_path / "engine.log")
    async with client, other:
        batches = {
            name: await submit(through, requests(BATCHES[name], prefix=name))
            for name, through in zip(BATCHES, (client, other), strict=True)
        }
        await until_answered(log, sum(BATCHES.values()) // 3)
        since = now()
        await asyncio.gather(api.kill(), workers[0].kill())
        until_then = now()
        for name, batch_id in batches.items():
            await check_result(other, name, batch_id)
        assert {batch.id async for batch in other.batches.list()} == set(batches.values())
    at_risk = log.read().unanswered(since - int((COMMIT_INTERVAL + COMMIT_SECONDS) * SECOND), until_then)
    again = log.sent_again()
    assert at_risk
    assert set(again) <= at_risk, f"{set(again) - at_risk} beyond the {len(at_risk)} that may be sent twice"
    assert max(again.values(), default=0) <= 1


async def test_temporal_knows_each_of_the_settings_that_we_ship() -> None:
    path = compose.ROOT / "deploy/temporal/dynamicconfig.yaml"
    command = [FOLDER / "temporal-server", "validate-dynamic-config", path]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert output.decode() == f"{path}\n"  # errors and warnings would follow
