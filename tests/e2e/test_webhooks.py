"""A webhook outlives whoever was to send it."""

from __future__ import annotations

import asyncio

from openai import OpenAI

from tests.e2e.processes import Launcher, finished, submit
from tests.fakes.engine import Engine, EngineOptions
from tests.fakes.receiver import open_receiver
from tests.integration.stack import requests, until

SECRET = "whsec_c2VjcmV0"


async def test_a_worker_is_killed_between_two_attempts(cluster: Launcher) -> None:
    engine = Engine(EngineOptions())
    port = await engine.start()
    async with open_receiver() as receiver:
        receiver.statuses = [503]
        cluster.env |= {
            "EVERBATCH_UPSTREAM_URL": f"http://127.0.0.1:{port}/v1",
            "EVERBATCH_WEBHOOK_URL": receiver.url(),
            "EVERBATCH_WEBHOOK_SECRET": SECRET,
            "EVERBATCH_WEBHOOK_ALLOW_PRIVATE": "true",
        }
        (_, client), worker = await asyncio.gather(cluster.serve(), cluster.worker())

        async def tried(times: int) -> bool:
            return len(receiver.received) == times

        async with client:
            batch_id = await submit(client, requests(2))
            await until(lambda: tried(1), "an attempt")
            await worker.kill()
            await cluster.worker()
            await until(lambda: tried(2), "another attempt", 60)
            assert (await finished(client, batch_id)).batch.status == "completed"
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        event = OpenAI(api_key="k").webhooks.unwrap(second.body, second.headers, secret=SECRET)
        assert event.type == "batch.completed"
        assert event.data.id == batch_id
    await engine.close()
