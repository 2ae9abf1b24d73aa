"""The stock Node SDKs as clients, against real processes. What they do is in ``node/*.test.cjs``."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from pydantic import SecretStr

from activities.webhooks import event_body, signature
from tests.e2e.node_sdk import NODE, node_modules
from tests.e2e.processes import ROOT
from tests.e2e.shared_dev import SharedDev

SECRET = "whsec_bm9kZSBtdXN0IGtub3cgaXQ="


def signed_event() -> dict[str, object]:
    """As ``deliver_webhook`` sends it."""
    body, now = event_body("evt_1", "batch.completed", 1, "batch_1"), int(time.time())
    headers = {
        "webhook-id": "wh_1",
        "webhook-timestamp": str(now),
        "webhook-signature": signature([SecretStr(SECRET)], "wh_1", now, body),
    }
    return {"body": body.decode(), "headers": headers, "secret": SECRET}


@pytest.mark.timeout(180)  # the first time it gets the SDK
@pytest.mark.parametrize(("program", "tests"), [("sdk", 7), ("anthropic", 2)])
async def test_the_node_sdk(server: SharedDev, program: str, tests: int) -> None:
    packages = await asyncio.to_thread(node_modules)
    child = await server.launcher.program(
        "node",
        [*NODE, "--test-reporter=spec", str(ROOT / f"tests/e2e/node/{program}.test.cjs")],
        {
            "NODE_PATH": str(packages),
            "BASE_URL": str(server.client.base_url),
            "ENGINE_CONTROL": f"{server.engine.root}/control",
            "WEBHOOK": json.dumps(signed_event()),
        },
    )
    code = await child.wait(90)
    assert code == 0, f"{child.stdout}\n{child.stderr}"
    assert f"tests {tests}" in child.stdout
