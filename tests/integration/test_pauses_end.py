"""A pause ends with its cause: the long wait of one batch holds no other batch of the model."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.integration.conftest import MakeStack
from tests.integration.stack import progress_of, requests


@pytest.mark.parametrize("status", [500, 503])
async def test_a_long_retry_after_of_a_cancelled_batch_holds_nobody(stack: MakeStack, status: int) -> None:
    it = await stack(latency=0.02)
    it.script(mode="status", status=status, match="refused", retry_after=600)
    refused_batch = await it.submit(requests(100, prefix="refused"))
    await it.until(refused_batch, lambda batch: progress_of(batch).get("waiting_reason"))
    await it.openai.batches.cancel(refused_batch)
    await it.finished(refused_batch)
    began = time.monotonic()
    assert (await it.run(requests(100))).counts == (100, 100, 0)
    assert time.monotonic() - began < 15


async def test_while_a_batch_waits_another_of_the_same_model_asks_for_itself(stack: MakeStack) -> None:
    it = await stack(latency=0.02)
    it.script(mode="status", status=503, match="refused", retry_after=600)
    refused_batch = await it.submit(requests(100, prefix="refused"))
    waiting = await it.until(refused_batch, lambda batch: progress_of(batch).get("next_attempt_at"))
    assert 50 < progress_of(waiting)["next_attempt_at"] - time.time() < 70  # a minute, and not ten
    assert (await it.run(requests(100))).counts == (100, 100, 0)
    refused = it.engine.counters().refused_total
    await asyncio.sleep(2)
    assert it.engine.counters().refused_total <= refused + 1  # the batch that was refused sends no more
    await it.openai.batches.cancel(refused_batch)
    await it.finished(refused_batch)
