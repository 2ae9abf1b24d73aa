"""The fault matrix, part one: the worker, the API, Temporal, and all of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.e2e.conftest import MakeWorld, on_s3_too
from tests.e2e.engine_log import SECOND
from tests.e2e.faults import BY_PREFIX, GROUPED, SINGLE, Size, signalled
from tests.e2e.faults_table import Row
from tests.e2e.processes import now
from tests.integration.stack import requests, until

pytestmark = pytest.mark.faults
slow = pytest.mark.slow_faults
both = pytest.mark.parametrize("size", [SINGLE, GROUPED], ids=str)


@slow
@on_s3_too
@both
async def test_nothing_happens(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit()
    await it.end("Nothing", "an undisturbed run")


# The worker


@on_s3_too
@pytest.mark.parametrize("size", [pytest.param(SINGLE, marks=slow), GROUPED, BY_PREFIX], ids=str)
async def test_worker_is_killed(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault():
        await it.worker.kill()
    it.lift()
    await it.start_worker()
    await it.end("Worker", "`kill -9`", allowed=it.at_risk())


@on_s3_too
@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@both
async def test_worker_drains(world: MakeWorld, size: Size, number: signal.Signals) -> None:
    it = await world(size)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault():
        seconds = await signalled(it.worker, number)
    it.lift()
    assert it.log.read().count("abort") == 0
    await it.start_worker()
    await it.end("Worker", number.name, note=f"gone in {seconds:.1f} s")


@on_s3_too
@slow
@both
async def test_rolling_restart(world: MakeWorld, size: Size) -> None:
    it = await world(size, workers=0)
    first, second = [await it.start_worker(size.in_flight // 2) for _ in range(2)]
    await it.submit()
    await it.until_answered(0.15)
    with it.fault():
        for worker in (first, second):
            await signalled(worker, signal.SIGTERM)
            await it.start_worker(size.in_flight // 2)
    it.lift()
    assert it.log.read().count("abort") == 0
    await it.end("Worker", "rolling restart of two")


@slow
@on_s3_too
@both
async def test_a_pause_of_the_machine(world: MakeWorld, size: Size) -> None:
    """As a virtual machine that is moved: shorter than the heartbeat timeout, so nothing counts as lost."""
    it = await world(size)
    await it.submit()
    await it.until_answered(0.2)
    with it.fault():
        it.worker.send(signal.SIGSTOP)
        it.struck()
        await asyncio.sleep(5)
        it.worker.send(signal.SIGCONT)
    it.lift()
    await it.end("Worker", "SIGSTOP, SIGCONT after 5 s")


@slow
@both
async def test_a_busy_machine(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit()
    await it.until_answered(0.1)
    command = [sys.executable, "-c", "while True: pass"]
    with it.fault():
        busy = [await it.launcher.program("busy", command, {}) for _ in range(4 * (os.cpu_count() or 1))]
        await asyncio.sleep(15)  # beyond the heartbeat timeout
        for one in busy:
            await one.kill()
    it.lift()
    await it.end("Worker", "four times as many busy processes as cores for 15 s")


@slow
@on_s3_too
@both
async def test_zombie(world: MakeWorld, size: Size) -> None:
    """Suspended past its heartbeat timeout; when its shards have been taken up elsewhere it goes on."""
    it = await world(size, workers=0)
    suspended = await it.start_worker(size.in_flight // 2)
    await it.start_worker(size.in_flight // 2)
    await it.submit()
    await it.until_answered(0.2)
    with it.fault():
        suspended.send(signal.SIGSTOP)
        await asyncio.sleep(0.1)  # what it has sent arrives
        it.struck()

        async def taken_up() -> bool:
            return len(it.log.read().sent_again()) >= size.in_flight // 4

        await until(taken_up, "its requests are sent by the other", 40)
    it.lift()
    suspended.send(signal.SIGCONT)
    await it.until_ended(60)
    # What waited for its connection when it was stopped goes out on waking, and is dropped.
    waking = [event for event in it.log.read().events if it.lifted < event.at < it.lifted + SECOND / 10]
    connecting = {event.custom_id for event in waking if event.kind == "abort"}
    allowed = it.at_risk() | connecting
    await it.end("Worker", "zombie: SIGSTOP, its shards run elsewhere, SIGCONT", allowed=allowed)
    assert suspended.running


# The API


@on_s3_too
@slow
async def test_api_is_killed_during_upload(world: MakeWorld) -> None:
    it = await world(SINGLE)
    await it.submit()
    url = it.client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST {url.path}files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    writer.write(f"{head}content-length: 9000000\r\n\r\n--b\r\n".encode())
    writer.write(b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n')
    writer.write(b'Content-Disposition: form-data; name="file"; filename="half.jsonl"\r\n\r\n' + b"x" * 6_000_000)
    await writer.drain()
    # Either keeps what is not committed in a folder of its own, S3 no part that is not full.
    temporary = it.store.parent / ".sgwtmp" if it.s3 else it.store / ".tmp"

    async def under_way() -> bool:
        return any(one.stat().st_size > 1_000_000 for one in temporary.rglob("*") if one.is_file())

    await until(under_way, "half a file")
    with it.fault("api"):
        await it.api.kill()
        it.struck()
        it.lift()
        await it.start_api()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    names = {file.filename async for file in it.client.files.list()}
    # The batch may have ended meanwhile.
    assert names - {f"{it.batch_id}_output.jsonl"} == {"in.jsonl"}
    await it.end("API", "`kill -9` during an upload", note="no half file is listed")


@slow
async def test_api_is_killed_between_start_and_record(world: MakeWorld, tmp_path: Path) -> None:
    it = await world(SINGLE)
    mark = tmp_path / "held"
    held, client = await it.start_held_api(mark)
    file_id = await it.upload()
    create = asyncio.create_task(it.create(file_id, key="only-once", client=client))

    async def reached() -> bool:
        return mark.exists()

    await until(reached, "a create between start and record")
    await held.kill()
    with pytest.raises(openai.APIConnectionError):
        await create
    it.since = it.until = now()

    async def listed() -> str:
        ids = [batch.id async for batch in it.client.batches.list()]
        assert len(ids) <= 1
        return ids[0] if ids else ""

    batch_id = await until(listed, "the worker makes the batch known")
    await it.watch(batch_id)
    assert await it.create(file_id, key="only-once") == batch_id
    await it.end("API", "`kill -9` between the start of the workflow and the record", note="the retry finds the batch")


@slow
@both
async def test_api_is_killed_during_polling(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault("api"):
        await it.api.kill()
        it.struck()
        it.lift()
        await it.start_api()
    await it.end("API", "`kill -9` during polling")


@on_s3_too
@slow
async def test_api_is_killed_during_download(world: MakeWorld) -> None:
    it = await world(GROUPED, engine={"answer_bytes": 8000})
    await it.submit()
    await it.until_ended(60)
    batch = await it.client.batches.retrieve(it.batch_id)
    output = batch.output_file_id
    assert output
    size = (await it.client.files.retrieve(output)).bytes

    def small_buffer(address: object) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return made

    connector = aiohttp.TCPConnector(socket_factory=small_buffer)
    async with (
        aiohttp.ClientSession(connector=connector, read_bufsize=4096) as session,
        session.get(f"{it.client.base_url}files/{output}/content") as response,
    ):
        assert await response.content.readexactly(100_000)
        with it.fault("api"):
            await it.api.kill()
            it.struck()
            it.lift()
            await it.start_api()
        with pytest.raises(aiohttp.ClientPayloadError):  # not a shorter file that looks whole
            await response.read()
    again = (await it.client.files.content(output)).content
    assert len(again) == size
    assert again.count(b"\n") == GROUPED.count
    await it.end("API", "`kill -9` during a download", note="the client sees a broken transfer, the next one is whole")


# Temporal


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=[slow, pytest.mark.timeout(240)])])
@pytest.mark.parametrize("size", [SINGLE, pytest.param(GROUPED, marks=slow)], ids=str)
async def test_temporal_is_killed(world: MakeWorld, size: Size, seconds: int) -> None:
    it = await world(size, own_temporal=True)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault():
        await it.kill_temporal()
        it.struck()
        await asyncio.sleep(seconds)
        it.lift()
        await it.start_temporal()
    note = "" if seconds == 1 else f"{(it.lifted - it.since) / SECOND:.0f} s away"
    await it.end(
        "Temporal", f"`kill -9`, started again after {seconds} s", allowed=it.at_risk(), seconds=120, note=note
    )


@slow
async def test_temporal_is_down_while_a_batch_is_created(world: MakeWorld) -> None:
    it = await world(SINGLE, own_temporal=True)
    file_id = await it.upload()
    await it.kill_temporal()
    with pytest.raises(openai.InternalServerError) as caught:
        await it.create(file_id, key="only-once")
    assert caught.value.status_code == 503
    assert float(caught.value.response.headers["retry-after"]) > 0
    await it.start_temporal()

    async def created() -> str:
        with contextlib.suppress(openai.InternalServerError):
            return await it.create(file_id, key="only-once")
        return ""

    batch_id = await until(created, "a batch")
    assert await it.create(file_id, key="only-once") == batch_id
    await it.watch(batch_id)
    assert [batch.id async for batch in it.client.batches.list()] == [batch_id]
    await it.end("Temporal", "down while a batch is created", note="503, then the retry makes exactly one")


# Everything


@on_s3_too
@slow
@both
async def test_the_machine_goes_down(world: MakeWorld, size: Size) -> None:
    it = await world(size, own_temporal=True)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault("api"):
        await asyncio.gather(it.api.kill(), it.worker.kill(), it.kill_temporal())
        it.struck()
        it.lift()
        await asyncio.gather(it.start_temporal(), it.start_api(), it.start_worker())
    await it.end("Everything", "`kill -9` of all at once, all started again", allowed=it.at_risk(), seconds=90)


# Create


@slow
async def test_two_apis_create_with_the_same_key(world: MakeWorld) -> None:
    it = await world(SINGLE, engine={"latency": 0})
    first = it.client
    await it.start_api()
    started = now()
    made: list[str] = []
    file_id = await it.upload(requests(1))
    for number in range(50):
        ids = await asyncio.gather(*(it.create(file_id, key=f"{number}", client=api) for api in (first, it.client)))
        assert ids[0] == ids[1]
        made.append(ids[0])
    assert [batch.id async for batch in it.client.batches.list(limit=100)] == made[::-1]

    async def all_ended() -> bool:
        return {batch.status async for batch in it.client.batches.list(limit=100)} == {"completed"}

    await until(all_ended, "the end of all", 30)
    assert it.log.read().count("recv") == 50
    name = "two APIs, the same idempotency key at once, 50 times"
    it.matrix.add(Row("Create", name, 50, 0, 0, 0, None, (now() - started) / SECOND))
