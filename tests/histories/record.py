"""Record what runs of the batch workflow look like, for ``tests/unit/test_replay.py``.

    python -m tests.histories.record

A released workflow has batches running everywhere: their histories must go on replaying. So once there is a release,
record new shapes under new names and leave those that are there alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowFailureError

from activities.settings import Settings
from activities.temporal.batch_runs import BatchRuns
from activities.temporal.connection import connect
from activities.temporal.namespace import prepare_namespace
from api.dev.temporal_binary import Progress, locate_temporal
from api.dev.temporal_server import EmbeddedTemporal
from tests.integration.stack import Stack, progress_of, request, requests, until
from workflows.ids import BatchRef

FOLDER = Path(__file__).parent


async def completed_single(it: Stack) -> str:
    it.script(mode="status", status=400, match="r-2")
    return await it.submit(requests(5))


async def completed_grouped(it: Stack) -> str:
    return await it.submit(requests(501))


async def failed_validation(it: Stack) -> str:
    return await it.submit([request("a"), "not json", request("a")])


async def failed_without_a_file(it: Stack) -> str:
    return (await it.create("file-missing")).id


async def shard_retries(it: Stack) -> str:
    it.script(mode="status", status=503, times=4)
    return await it.submit(requests(501))


async def _half_done(it: Stack, window: str = "24h") -> str:
    it.script(mode="hang", match="hangs")
    batch_id = await it.submit([request(f"{'hangs' if n % 2 else 'ok'}-{n}") for n in range(6)], window=window)
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 3)
    return batch_id


async def cancelled_mid_run(it: Stack) -> str:
    batch_id = await _half_done(it)
    await it.openai.batches.cancel(batch_id)
    return batch_id


async def cancelled_from_temporal(it: Stack) -> str:
    batch_id = await _half_done(it)
    await it.workflow(batch_id).cancel()
    return batch_id


async def cancelled_both_ways(it: Stack) -> str:
    batch_id = await _half_done(it)
    await it.openai.batches.cancel(batch_id)
    await it.workflow(batch_id).cancel()
    return batch_id


async def cancelled_by_signal(it: Stack) -> str:
    batch_id = await _half_done(it)
    await it.workflow(batch_id).signal("cancel")
    return batch_id


async def cancelled_after_a_termination(it: Stack) -> str:
    batch_id = await _half_done(it)
    await it.workflow(batch_id).terminate()
    await BatchRuns(it.temporal, it.settings.task_queue).start_cancelled(
        it.catalog.get_batch(BatchRef("default", batch_id)).spec
    )
    return batch_id


async def cancelled_before_validation(it: Stack) -> str:
    await it.stop_worker()
    batch_id = await it.submit(requests(3))
    await it.openai.batches.cancel(batch_id)
    await it.start_worker()
    return batch_id


async def cancelled_while_validating(it: Stack) -> str:
    # The engine's list of models, of which validation asks, does not come; so there is time for the cancel.
    await it.engine.close()
    silent = await asyncio.start_server(lambda _reader, _writer: asyncio.sleep(8), "127.0.0.1", it.engine_port)
    async with silent:
        batch_id = await it.submit(requests(3))
        workflow = it.workflow(batch_id)

        async def validates() -> bool:
            return bool((await workflow.describe()).raw_description.pending_activities)

        await until(validates, "validation")
        await it.openai.batches.cancel(batch_id)
        await it.finished(batch_id)
        silent.close()
    return batch_id


async def expired(it: Stack) -> str:
    return await _half_done(it, window="2s")


async def expired_before_a_worker_came(it: Stack) -> str:
    await it.stop_worker()
    batch_id = await it.submit(requests(3), window="2s")
    await asyncio.sleep(3)
    await it.start_worker()
    return batch_id


async def paused_and_resumed(it: Stack) -> str:
    it.script(mode="status", status=503, retry_after=1)
    batch_id = await it.submit(requests(6))
    await it.until(batch_id, lambda batch: progress_of(batch).get("waiting_reason"))
    await it.workflow(batch_id).signal("pause")
    await it.until(batch_id, lambda batch: progress_of(batch)["waiting"]["kind"] == "pause")
    it.script()
    await it.workflow(batch_id).signal("resume")
    return batch_id


async def completed_with_webhooks(it: Stack) -> str:
    return await it.submit(requests(2))


async def cancelled_over_two_upstreams(it: Stack) -> str:
    batch_id = await it.submit([request("1", model="a"), request("2", model="b")])
    await it.until(batch_id, lambda batch: progress_of(batch).get("waiting_reason"))
    await it.openai.batches.cancel(batch_id)
    return batch_id


SETTINGS: dict[str, dict[str, Any]] = {
    "cancelled_over_two_upstreams": {"upstreams": str(FOLDER / "upstreams.toml")},
    # That nobody may be told at this address is for the webhook's own workflow to find out.
    "completed_with_webhooks": {"webhook_url": "http://127.0.0.1:9/", "webhook_secret": "secret"},
}

CASES: list[Callable[[Stack], Awaitable[str]]] = [
    completed_single,
    completed_grouped,
    failed_validation,
    failed_without_a_file,
    shard_retries,
    cancelled_mid_run,
    cancelled_from_temporal,
    cancelled_both_ways,
    cancelled_by_signal,
    cancelled_after_a_termination,
    cancelled_before_validation,
    cancelled_while_validating,
    expired,
    expired_before_a_worker_came,
    paused_and_resumed,
    completed_with_webhooks,
    cancelled_over_two_upstreams,
]


async def record(client: Client, folder: Path, case: Callable[[Stack], Awaitable[str]]) -> None:
    async with Stack.open(client, folder, **SETTINGS.get(case.__name__, {})) as it:
        await it.start_worker()
        batch_id = await case(it)
        workflow = it.workflow(batch_id)
        with contextlib.suppress(WorkflowFailureError):
            await asyncio.wait_for(workflow.result(), 60)
        history = await workflow.fetch_history()
    text = json.dumps(json.loads(history.to_json()), separators=(",", ":"))
    text = text.replace(f"{FOLDER.parents[1]}/", "")  # stack traces name where they were recorded
    name = case.__name__
    (FOLDER / f"{name}.json").write_text(text + "\n")
    sys.stdout.write(f"{name}: {len(history.events)} events, {len(text)} bytes\n")


async def main() -> None:
    binary = locate_temporal(Settings.model_validate({}).temporal_cli, Progress(io.StringIO()))
    assert binary, "no Temporal binary: `make test` gets one"
    with tempfile.TemporaryDirectory(prefix="everbatch-record-") as name:
        folder = Path(name)
        async with EmbeddedTemporal(binary, folder / "temporal", 0, 0) as server:
            client = await connect(server.address)
            await prepare_namespace(client)
            for case in CASES:
                await record(client, folder / case.__name__, case)


if __name__ == "__main__":
    asyncio.run(main())
