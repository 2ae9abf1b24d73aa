"""The examples do what they say."""

from __future__ import annotations

import sys

from tests.e2e.shared_dev import SharedDev

TICKETS = ["ticket-4101", "ticket-4102", "ticket-4103"]


async def test_the_nightly_job_may_be_begun_again(server: SharedDev) -> None:
    for _ in range(2):
        child = await server.launcher.program(
            "nightly", [sys.executable, "examples/nightly.py"], {"OPENAI_BASE_URL": str(server.client.base_url)}
        )
        assert await child.wait() == 0, child.stderr
        assert [line.partition(":")[0] for line in child.stdout.splitlines()] == TICKETS
        assert all(line.partition(": ")[2] for line in child.stdout.splitlines())
    assert (await server.engine.counters()).received_total == 3
