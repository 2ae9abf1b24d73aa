"""Two processes that upload other content under the same idempotency keys at the same time, through the API."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.synchronize import Barrier
from typing import Any

import httpx2

from activities.configured import open_store
from activities.records.catalog import Catalog
from activities.records.keys import content_key
from activities.settings import Settings
from activities.store.object_store import ObjectStore
from api.app import create_app
from tests.fakes.api import field, file, form
from tests.fakes.gateway import FakeGateway


def race(settings: dict[str, Any], rounds: int) -> None:
    """Exactly one of the two has each key, the other is refused; record and content of each file are of one upload."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    queue: Any = context.Queue()
    processes = [
        context.Process(target=_run, args=(settings, number, rounds, barrier, queue), daemon=True) for number in (1, 2)
    ]
    for process in processes:
        process.start()
    statuses = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(20)
    pairs = list(zip(statuses[1], statuses[2], strict=True))
    assert {tuple(sorted(pair)) for pair in pairs} == {(200, 409)}, pairs
    store = open_store(Settings.model_validate(settings))
    _check(store, statuses, rounds)


def _check(store: ObjectStore, statuses: dict[int, list[int]], rounds: int) -> None:
    records = {record.filename: record for record in Catalog(store).list_files("default", after=None)}
    assert len(records) == rounds
    for number in range(rounds):
        winner = 1 if statuses[1][number] == 200 else 2
        record = records[f"{number}.jsonl"]
        assert store.get(content_key("default", record.id)) == _content(winner, number)
        assert record.bytes == len(_content(winner, number))


def _content(worker: int, number: int) -> bytes:
    return b"%d" % worker * (number * 1000 + worker)


def _run(settings: dict[str, Any], worker: int, rounds: int, barrier: Barrier, queue: Any) -> None:
    queue.put((worker, asyncio.run(_upload_all(settings, worker, rounds, barrier))))


async def _upload_all(settings: dict[str, Any], worker: int, rounds: int, barrier: Barrier) -> list[int]:
    read = Settings.model_validate(settings)
    store = open_store(read)
    transport = httpx2.ASGITransport(create_app(read, FakeGateway(store), store, []))
    statuses: list[int] = []
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        for number in range(rounds):
            content = file(_content(worker, number), f'filename="{number}.jsonl"')
            body, headers = form(field("purpose", "batch"), content)
            await asyncio.to_thread(barrier.wait, 60)
            answer = await http.post("/v1/files", content=body, headers=headers | {"Idempotency-Key": f"k{number}"})
            statuses.append(answer.status_code)
    return statuses
