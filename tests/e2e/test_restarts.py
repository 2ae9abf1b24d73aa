"""A worker that is told to stop leaves nothing behind that has to wait for a heartbeat timeout."""

from __future__ import annotations

import time
from pathlib import Path

from temporalio.client import Client

from tests.e2e.engine_log import EngineLog
from tests.e2e.processes import Launcher, finished, submit
from tests.e2e.restarts import left_behind, stopped
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import requests, until

COUNT, IN_FLIGHT, LATENCY = 300, 64, 0.5
STANDSTILL = 8.0
"""Seconds; a heartbeat timeout would be 30."""


async def test_a_clean_stop_costs_no_heartbeat_timeout(cluster: Launcher, temporal: str, tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log")
    client = await Client.connect(temporal)
    async with EngineProcess(latency=LATENCY, log=log.path) as engine:
        cluster.env |= {"EVERBATCH_UPSTREAM_URL": engine.url, "EVERBATCH_HEARTBEAT_TIMEOUT": "30"}
        worker = await cluster.worker("--max-in-flight", str(IN_FLIGHT))
        _, api = await cluster.serve()
        async with api:
            batch_id = await submit(api, requests(COUNT))
            for fraction in (0.2, 0.5):

                async def look(fraction: float = fraction) -> bool:
                    return len(log.read().answered) >= fraction * COUNT

                await until(look, f"{fraction} of the answers", STANDSTILL + COUNT * LATENCY / IN_FLIGHT)
                await stopped(worker)
                assert await left_behind(client, batch_id, worker) == []
                worker = await cluster.worker("--max-in-flight", str(IN_FLIGHT))
            left = COUNT - len(log.read().answered)
            ready = time.monotonic()
            result = await finished(api, batch_id)
            assert time.monotonic() - ready < left * LATENCY / IN_FLIGHT + STANDSTILL
    assert result.counts == (COUNT, COUNT, 0)
    assert not log.read().sent_again()
