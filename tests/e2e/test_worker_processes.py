"""``everbatch worker --processes N``."""

from __future__ import annotations

import os
import re
import signal

from tests.e2e.processes import WORKER_LINE, Child, Launcher, done, finished, gone, submit, until_batch
from tests.fakes.engine import Engine, EngineOptions
from tests.integration.stack import requests, until

REPLACED = re.compile(r"worker process \d \(pid (\d+)\) ended with -9; starting another")


async def started(child: Child, count: int) -> None:
    async def look() -> bool:
        return len(WORKER_LINE.findall(child.stdout)) >= count

    await until(look, f"{count} workers", 60)


async def test_a_killed_worker_process_is_replaced_and_the_batch_goes_on(cluster: Launcher) -> None:
    engine = Engine(EngineOptions(latency=0.05))
    cluster.env["EVERBATCH_UPSTREAM_URL"] = f"http://127.0.0.1:{await engine.start()}/v1"
    workers = await cluster.start("worker", "--processes", "2", "--max-in-flight", "4")
    _, client = await cluster.serve()
    async with client:
        await started(workers, 2)
        batch_id = await submit(client, requests(300))
        await until_batch(client, batch_id, lambda batch: done(batch) >= 20)
        victim = workers.family()[-1]
        os.kill(victim.pid, signal.SIGKILL)
        result = await finished(client, batch_id)
        assert result.counts == (300, 300, 0)
        assert sorted(result.answered) == sorted(one["custom_id"] for one in requests(300))
        await workers.said(REPLACED)
        await started(workers, 3)
        family = workers.family()
        workers.send(signal.SIGTERM)
        assert await workers.wait() == 0
        workers.check_clean_exit()
        await gone(family, 1)
    await engine.close()


async def test_workers_follow_a_parent_that_is_killed(cluster: Launcher) -> None:
    cluster.env["EVERBATCH_UPSTREAM_URL"] = "http://127.0.0.1:9/v1"
    workers = await cluster.start("worker", "--processes", "2")
    await started(workers, 2)
    family = workers.family()
    assert len(family) == 3
    await workers.kill()
    await gone(family)


async def test_workers_that_cannot_start_end_the_command(cluster: Launcher) -> None:
    cluster.env |= {"EVERBATCH_UPSTREAM_URL": "http://127.0.0.1:9/v1", "EVERBATCH_METRICS_ADDRESS": "nowhere:1"}
    workers = await cluster.start("worker", "--processes", "2")
    assert await workers.wait(40) == 1
    workers.check_clean_exit()
    assert "a worker process cannot start" in workers.stderr
    assert re.search("EVERBATCH_METRICS_ADDRESS=nowhere:[12]", workers.stderr), "each process has a port of its own"
