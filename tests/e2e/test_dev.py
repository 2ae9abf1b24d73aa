"""``everbatch dev`` over real sockets: limits that hold for any client, and a ``kill -9`` of everything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest

from tests.e2e.faults import undisturbed
from tests.e2e.processes import Launcher, done, finished, gone, submit, until_batch
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import requests

LIMIT = 1_000_000


async def test_a_file_over_the_limit(cluster: Launcher) -> None:
    _, client = await cluster.serve(EVERBATCH_UPSTREAM_URL="http://127.0.0.1:9/v1", EVERBATCH_MAX_FILE_BYTES=str(LIMIT))
    async with client:
        fits = await client.files.create(file=("in.jsonl", b"x" * LIMIT), purpose="batch")
        assert fits.bytes == LIMIT
        with pytest.raises(openai.APIStatusError) as caught:
            await client.files.create(file=("in.jsonl", b"x" * (LIMIT + 1)), purpose="batch")
        assert caught.value.status_code == 413
        assert caught.value.type == "invalid_request_error"
        assert str(LIMIT) in caught.value.message

        # Declared, by a client that asks first: refused by the length alone.
        url = httpx2.URL(str(client.base_url))
        reader, writer = await asyncio.open_connection(url.host, url.port)
        head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        writer.write(f"{head}expect: 100-continue\r\ncontent-length: {LIMIT * 1000}\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 413 ")
        writer.close()
        await writer.wait_closed()

        # Chunked: nothing is declared, so it is refused when it gets too long.
        async def parts() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
            for _ in range(64):
                yield b"x" * (LIMIT // 16)
            yield b"\r\n--b--\r\n"

        async with httpx2.AsyncClient(timeout=30) as http:
            answer = await http.post(
                f"{client.base_url}files",
                content=parts(),
                headers={"content-type": "multipart/form-data; boundary=b"},
            )
        assert answer.status_code == 413
        assert set(json.loads(answer.content)["error"]) == {"message", "type", "param", "code"}
        assert [file.id async for file in client.files.list()] == [fits.id]


async def test_kill_minus_nine_of_everything(processes: Launcher) -> None:
    async with EngineProcess(latency=0.1) as engine:
        processes.env |= {"EVERBATCH_UPSTREAM_URL": engine.url, "EVERBATCH_HEARTBEAT_TIMEOUT": "2"}
        first, client = await processes.dev(EVERBATCH_MAX_IN_FLIGHT="32")
        family = first.family()
        async with client:
            batch_id = await submit(client, requests(1000))
            await until_batch(client, batch_id, lambda batch: done(batch) >= 100)
        await first.kill()
        await gone(family, 15)
        assert (await engine.counters()).answered_total < 1000
        _, client = await processes.dev(EVERBATCH_MAX_IN_FLIGHT="32")
        async with client:
            result = await finished(client, batch_id, 90)
            assert [batch.id async for batch in client.batches.list()] == [batch_id]
        counters = await engine.counters()
    assert result.counts == (1000, 1000, 0)
    answers = {line["custom_id"]: line["response"]["body"] for line in result.output}
    assert answers == undisturbed((f"r-{number}" for number in range(1000)), 400)
    # At most what was in flight, what had just been answered, and each of those once more.
    twice = [name for name, count in counters.received.items() if count > 1]
    assert len(twice) <= 32 + 32 * 2
    assert max(counters.received.values()) == 2
