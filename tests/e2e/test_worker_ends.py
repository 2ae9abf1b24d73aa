"""A worker that is killed or stopped mid-batch: nothing is lost, and next to nothing is sent twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.e2e.processes import Launcher, done, finished, now, submit, until_batch, witness
from tests.fakes.engine_answers import Answers
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import CHAT, Finished, requests

COMMIT_SECONDS = 0.2
"""Commit interval of a tenth of a second, and as much again for what a commit takes."""


def undisturbed(count: int) -> list[tuple[str, object]]:
    """The ids and bodies of a run in which nothing happens; the engine answers the same each time."""
    answers = Answers("fake", 400)
    names = [f"r-{number}" for number in range(count)]
    return [
        (name, json.loads(answers.success(CHAT.encode(), name.encode(), 0).partition(b"\r\n\r\n")[2])) for name in names
    ]


def check_undisturbed(result: Finished, count: int) -> None:
    assert result.batch.status == "completed"
    assert result.counts == (count, count, 0)
    assert [(line["custom_id"], line["response"]["body"]) for line in result.output] == undisturbed(count)


@pytest.mark.parametrize("count", [200, 1500], ids=["single", "grouped"])
async def test_kill_minus_nine(cluster: Launcher, tmp_path: Path, count: int) -> None:
    log = tmp_path / "engine.log"
    async with EngineProcess(latency=0.1, log=log) as engine:
        cluster.env |= {"EVERBATCH_UPSTREAM_URL": engine.url, "EVERBATCH_HEARTBEAT_TIMEOUT": "2"}
        _, client = await cluster.serve()
        in_flight = "16" if count == 200 else "64"
        worker = await cluster.worker("--max-in-flight", in_flight)
        async with client:
            batch_id = await submit(client, requests(count))
            await until_batch(client, batch_id, lambda batch: done(batch) >= count / 4)
            since = now()
            await worker.kill()
            until = now()
            before = await client.batches.retrieve(batch_id)
            assert before.status == "in_progress"
            assert count / 4 <= done(before) < count * 0.9
            await cluster.worker("--max-in-flight", in_flight)
            result = await finished(client, batch_id)
        await engine.stop()
    check_undisturbed(result, count)
    seen = witness(log, since, until, COMMIT_SECONDS)
    assert seen.in_flight
    assert seen.sent_twice <= seen.in_flight | seen.just_answered


async def test_a_worker_that_is_stopped_drains(cluster: Launcher, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with EngineProcess(latency=0.2, log=log) as engine:
        cluster.env["EVERBATCH_UPSTREAM_URL"] = engine.url
        _, client = await cluster.serve()
        worker = await cluster.worker()
        async with client:
            batch_id = await submit(client, requests(600))
            await until_batch(client, batch_id, lambda batch: done(batch) >= 100)
            family = worker.family()
            worker.send(signal.SIGTERM)
            assert await worker.wait() == 0
            worker.check_clean_exit()
            assert not any(one.alive for one in family)
            stopped = now()
            assert (await client.batches.retrieve(batch_id)).status == "in_progress"
            await cluster.worker()
            result = await finished(client, batch_id)
        await engine.stop()
    check_undisturbed(result, 600)
    assert not witness(log, stopped, stopped, 0).sent_twice
