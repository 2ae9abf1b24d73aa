"""The idempotency key is the workflow id: the same create makes one batch, however often and through whom."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import openai
import pytest
from openai.types import Batch
from temporalio.client import Client
from temporalio.service import RPCError

from activities.records.catalog import Catalog
from activities.store.object_store import ObjectNotFoundError, StoreError
from activities.temporal.connection import connect
from api.gateway.temporal import TemporalGateway
from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, requests, until
from workflows.ids import BatchRef


async def create(client: openai.AsyncOpenAI, file_id: str, key: str, **parameters: Any) -> Batch:
    values: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", **parameters}
    return await client.batches.create(input_file_id=file_id, extra_headers={"Idempotency-Key": key}, **values)


@pytest.fixture
def key() -> str:
    """A new one for each test: keys are workflow ids, and all tests share one Temporal."""
    return uuid.uuid4().hex


async def workflows_of(client: Client, task_queue: str, at_least: int) -> list[str]:
    """Ids of the workflows on a task queue, once that many are visible; the listing lags."""

    async def look() -> list[str]:
        found = [one.id async for one in client.list_workflows(f"TaskQueue = '{task_queue}'")]
        return found if len(found) >= at_least else []

    return await until(look, "visibility")


async def test_the_same_key_is_the_same_batch(stack: MakeStack, key: str) -> None:
    it = await stack()
    file_id = await it.upload(requests(3))
    first = await create(it.openai, file_id, key, metadata={"a": "1", "b": "2"})
    again = await create(it.openai, file_id, key, metadata={"b": "2", "a": "1"})
    assert (again.id, again.created_at) == (first.id, first.created_at)
    await it.finished(first.id)
    ended = await create(it.openai, file_id, key, metadata={"a": "1", "b": "2"})
    assert (ended.id, ended.status) == (first.id, "completed")
    by_body = await it.create(file_id, metadata={"a": "1", "b": "2"}, extra_body={"idempotency_key": key})
    assert by_body.id == first.id
    other = await create(it.openai, file_id, key + "-other", metadata={"a": "1", "b": "2"})
    assert other.id != first.id
    await it.finished(other.id)
    assert it.engine.counters().received == {f"r-{n}": 2 for n in range(3)}
    assert [batch.id async for batch in it.openai.batches.list()] == [other.id, first.id]


async def test_without_a_key_each_create_is_a_batch(stack: MakeStack) -> None:
    it = await stack(worker=False)
    file_id = await it.upload(requests(1))
    assert len({(await it.create(file_id)).id for _ in range(3)}) == 3


async def test_a_create_whose_record_cannot_be_written_has_happened(
    stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = await stack(worker=False, latency=0.1)
    file_id = await it.upload(requests(2))

    def full(*_: object) -> None:
        raise StoreError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "create_batch", full)
        stock = it.another_api(max_retries=2)
        batch = await stock.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        assert batch.status == "validating"
        # As yet only Temporal knows it; another tenant's it is not, and what is no batch is none.
        assert (await it.get(batch.id)).created_at == batch.created_at
        gateway = TemporalGateway(it.temporal, it.store, it.settings.task_queue, "")
        for ref in (BatchRef("other", batch.id), BatchRef("default", "batch_" + "0" * 32), BatchRef("default", "else")):
            with pytest.raises(ObjectNotFoundError):
                await gateway.find(ref)
            with pytest.raises(ObjectNotFoundError):
                await gateway.cancel(ref)
        assert (await gateway.set_paused(BatchRef("default", batch.id), True)).record.spec.batch_id == batch.id
        await gateway.set_paused(BatchRef("default", batch.id), False)
        assert [one.id async for one in it.openai.batches.list()] == []
    assert await workflows_of(it.temporal, it.settings.task_queue, 1) == [batch.id]
    assert (await it.get(batch.id)).status == "validating"  # and its record is written by the way
    assert [one.id async for one in it.openai.batches.list()] == [batch.id]
    await it.start_worker()
    assert (await it.finished(batch.id)).counts == (2, 2, 0)


async def test_a_batch_that_only_temporal_knows_can_be_cancelled(stack: MakeStack) -> None:
    it = await stack(worker=False)
    batch_id = await it.submit(requests(1))
    it.store.delete_prefix("batches/default/")
    assert (await it.openai.batches.cancel(batch_id)).status == "cancelling"
    it.store.delete_prefix("batches/default/")
    nowhere = it.another_api(temporal=await connect("127.0.0.1:1", lazy=True))
    with pytest.raises(openai.InternalServerError):  # it may well be there
        await nowhere.batches.retrieve(batch_id)


async def test_many_creates_at_once_through_two_apis_make_one_batch(stack: MakeStack, key: str) -> None:
    it = await stack(worker=False)
    file_id = await it.upload(requests(3))
    apis = [it.openai, it.another_api()]
    made = await asyncio.gather(*(create(apis[n % 2], file_id, key) for n in range(20)))
    assert len({batch.id for batch in made}) == 1
    assert len({batch.created_at for batch in made}) == 1
    await it.start_worker()
    assert (await it.finished(made[0].id)).counts == (3, 3, 0)
    assert it.engine.counters().received == {f"r-{n}": 1 for n in range(3)}
    assert await workflows_of(it.temporal, it.settings.task_queue, 1) == [made[0].id]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"metadata": {"a": "1"}}, {"metadata": {"a": "2"}}),
        ({"metadata": None}, {"metadata": {}}),
        ({}, {"metadata": {}}),
        ({"completion_window": "24h"}, {"completion_window": "2s"}),
        ({}, {"output_expires_after": {"anchor": "created_at", "seconds": 3600}}),
        ({}, {"endpoint": "/v1/completions"}),
    ],
)
async def test_other_parameters_are_a_conflict(
    stack: MakeStack, key: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    it = await stack(worker=False)
    file_id = await it.upload(requests(1))
    await create(it.openai, file_id, key, **first)
    with pytest.raises(openai.ConflictError) as caught:
        await create(it.openai, file_id, key, **second)
    assert "Conflict" in caught.value.message
    assert caught.value.code == "idempotency_conflict"
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_another_file_is_a_conflict_that_the_stock_client_does_not_try_again(stack: MakeStack, key: str) -> None:
    it = await stack(worker=False)
    one, other = await it.upload(requests(1)), await it.upload(requests(2))
    stock = it.another_api(max_retries=2)
    await create(stock, one, key)
    with pytest.raises(openai.ConflictError) as caught:
        await create(stock, other, key)
    # The client counts its tries in what it sends.
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"


async def test_the_store_answers_when_temporal_has_forgotten(
    stack: MakeStack, key: str, empty_temporal: Client
) -> None:
    it = await stack()
    file_id = await it.upload(requests(2))
    first = await create(it.openai, file_id, key)
    before = (await it.finished(first.id)).batch
    later = it.another_api(temporal=empty_temporal)
    with pytest.raises(RPCError, match="not found"):
        await empty_temporal.get_workflow_handle(first.id).describe()
    assert await create(later, file_id, key) == before
    assert await later.batches.retrieve(first.id) == before
    with pytest.raises(openai.ConflictError):
        await create(later, file_id, key, metadata={})
    with pytest.raises(RPCError, match="not found"):
        await empty_temporal.get_workflow_handle(first.id).describe()


async def test_a_create_that_was_cut_off_before_its_record(stack: MakeStack, key: str) -> None:
    it = await stack(worker=False)
    file_id = await it.upload(requests(2))
    first = await create(it.openai, file_id, key, metadata={"a": "1"})
    it.store.delete_prefix("batches/default/")
    it.store.delete_prefix("index/default/batches/")
    with pytest.raises(openai.ConflictError):
        await create(it.openai, file_id, key)
    again = await create(it.openai, file_id, key, metadata={"a": "1"})
    assert (again.id, again.created_at, again.metadata) == (first.id, first.created_at, {"a": "1"})
    assert [batch.id async for batch in it.openai.batches.list()] == [first.id]
