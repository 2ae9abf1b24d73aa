from __future__ import annotations
import asyncio, time, shutil
from pathlib import Path
import pytest
from tests.integration.test_upstreams import Engines, engines, taking_turns, port_of
from tests.integration.conftest import MakeStack
from tests.integration.stack import request, until, progress_of, requests
from activities.worker import BatchWorker

async def start_with(it, names):
    it._stop = asyncio.Event()
    w = BatchWorker(it.temporal, it.settings, it.store, [c for c in it.inference if c.upstream.name in names])
    it._worker = asyncio.create_task(w.run(it._stop))

@pytest.mark.parametrize("count", [20, 1200])
@pytest.mark.parametrize("how", ["cancel", "expire", "pause-cancel", "native"])
async def test_removed(stack: MakeStack, engines: Engines, how, count):
    await engines.start("up", "a", models='["a"]')
    await engines.start("gone", "b", models='["b"]')
    it = await stack(worker=False, upstreams=engines.path, completion_windows="4s,24h")
    fid = await it.upload(taking_turns(count, "a", "b"))
    # only validate clients know both: hack: batch worker with both for validation, but only 'up' polled
    it._stop = asyncio.Event()
    w = BatchWorker(it.temporal, it.settings, it.store, it.inference)
    w._inference_workers = w._inference_workers[:1]
    it._worker = asyncio.create_task(w.run(it._stop))
    b = await it.create(fid, window="4s" if how == "expire" else "24h")
    await it.until(b.id, lambda x: x.request_counts and x.request_counts.completed == count // 2)
    t = time.monotonic()
    if how == "pause-cancel":
        await it.http.post(f"/v1/batches/{b.id}/pause")
        await asyncio.sleep(1)
    if how == "native": await it.workflow(b.id).cancel()
    elif how != "expire": await it.openai.batches.cancel(b.id)
    f = await it.finished(b.id, 20)
    print(how, f.batch.status, f.counts, time.monotonic() - t)
    assert f.counts == (count, count//2, count//2)

async def test_dead_worker_started(stack: MakeStack, engines: Engines):
    "shards started on a worker that vanished, queue then unpolled"
    await engines.start("up", "a", models='["a"]')
    await engines.start("gone", "b", models='["b"]')
    from tests.fakes.engine_script import Script
    engines.engines[1].follow(Script(mode="hang"))
    it = await stack(worker=True, upstreams=engines.path, heartbeat_timeout=3)
    bid = await it.submit(taking_turns(20, "a", "b"))
    await it.until(bid, lambda x: x.request_counts and x.request_counts.completed == 10)
    await it.stop_worker()
    await start_with(it, ["up"])
    t = time.monotonic()
    await it.openai.batches.cancel(bid)
    f = await it.finished(bid, 20)
    print(f.batch.status, f.counts, time.monotonic() - t)

async def test_stop_in_validate(stack: MakeStack, engines: Engines, monkeypatch):
    await engines.start("up", "a")
    it = await stack(worker=True, upstreams=engines.path)
    real = it.inference[0].list_models
    async def slow():
        await asyncio.sleep(4); return await real()
    it.inference[0].list_models = slow
    bid = await it.submit([request("r", model="a")])
    await asyncio.sleep(1.5)
    t = time.monotonic(); await it.stop_worker(); print("stopped", time.monotonic() - t)
    async for e in it.workflow(bid).fetch_history_events(): print(e.event_type)
    d = await it.workflow(bid).describe()
    print([ (p.activity_id, p.attempt, p.last_failure.message) for p in d.raw_description.pending_activities])
    it.inference[0].list_models = real
    await it.start_worker()
    print((await it.finished(bid, 20)).counts)
