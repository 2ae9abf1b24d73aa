"""Batches whose store is on S3."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from openai import BadRequestError

from tests.integration.conftest import MakeStack
from tests.integration.stack import jsonl, requests, until
from tests.s3_server import BUCKET, S3Server


async def test_a_batch_from_upload_to_results(stack: MakeStack, s3_server: S3Server) -> None:
    it = await stack(store=f"s3://{BUCKET}/{uuid.uuid4().hex}", **s3_server.settings)
    lines = requests(600)  # shards of 100
    done = await it.run(lines)
    assert done.batch.status == "completed"
    assert done.answered == [line["custom_id"] for line in lines]
    assert [batch.id for batch in (await it.openai.batches.list()).data] == [done.batch.id]
    folder = f"batches/default/{done.batch.id}/"

    async def only_records_are_left() -> bool:  # soon: the final record is written before the rest is deleted
        left = await asyncio.to_thread(lambda: list(it.store.list(folder)))
        return left == [f"{folder}{name}.json" for name in ("created", "record", "running")]

    await until(only_records_are_left, "the leftovers are gone")


async def test_a_cancelled_batch_keeps_what_is_answered(stack: MakeStack, s3_server: S3Server) -> None:
    it = await stack(store=f"s3://{BUCKET}/{uuid.uuid4().hex}", latency=0.2, max_in_flight=8, **s3_server.settings)
    lines = requests(600)
    batch_id = await it.submit(lines)
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed)
    await it.openai.batches.cancel(batch_id)
    done = await it.finished(batch_id)
    assert done.batch.status == "cancelled"
    assert done.answered
    assert set(done.error_codes.values()) == {"batch_cancelled"}
    assert sorted(done.answered + done.refused) == sorted(line["custom_id"] for line in lines)


async def test_an_input_may_lie_in_a_bucket(stack: MakeStack, s3_server: S3Server) -> None:
    folder = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    prefixes = f"{folder}/inputs/{{tenant}},{folder}/large"
    it = await stack(store=folder, input_prefixes=prefixes, max_input_bytes=100_000, **s3_server.settings)
    lines = requests(60)
    it.store.put("inputs/default/in.jsonl", jsonl(lines))
    it.store.put("inputs/other/in.jsonl", jsonl(lines))
    it.store.put("large/in.jsonl", jsonl(requests(2000)))
    done = await it.finished((await it.create(f"{folder}/inputs/default/in.jsonl")).id)
    assert done.answered == [line["custom_id"] for line in lines]
    assert done.batch.input_file_id == f"{folder}/inputs/default/in.jsonl"
    for name, problem in (("inputs/default/no.jsonl", "Cannot read"), ("large/in.jsonl", "larger than the 100000")):
        failed = await it.finished((await it.create(f"{folder}/{name}")).id)
        assert failed.batch.status == "failed"
        assert failed.batch.errors
        assert failed.batch.errors.data
        assert problem in (failed.batch.errors.data[0].message or "")
    for name in ("inputs/other/in.jsonl", "inputs/default2/in.jsonl", "inputs/default/../other/in.jsonl", "large"):
        with pytest.raises(BadRequestError, match="EVERBATCH_INPUT_PREFIXES"):
            await it.create(f"{folder}/{name}")


async def test_inputs_in_buckets_are_closed_by_default(stack: MakeStack) -> None:
    it = await stack(worker=False)
    with pytest.raises(BadRequestError, match="EVERBATCH_INPUT_PREFIXES"):
        await it.create("s3://bucket/in.jsonl")
