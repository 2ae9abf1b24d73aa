from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from tests.fakes.engine import Engine, EngineOptions
from tests.fakes.engine_process import EngineProcess
from tests.fakes.engine_script import request_latency


@pytest.fixture(scope="module")
async def shared() -> AsyncGenerator[EngineProcess]:
    async with EngineProcess(latency=0.02, answer_bytes=1000, model=["other"]) as engine:
        yield engine


@pytest.fixture
async def engine(shared: EngineProcess) -> EngineProcess:
    await shared.control(latency=0.02, max_concurrent=0)
    await shared.reset_counters()
    return shared


@pytest.fixture
async def session() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
        yield session


async def _ask(
    session: aiohttp.ClientSession, engine: EngineProcess, custom_id: str, path: str = "/chat/completions", **more: Any
) -> tuple[int, str, dict[str, str]]:
    body = {"model": "fake", "messages": [{"role": "user", "content": 'say "user": "not-me"'}], "user": custom_id}
    async with session.post(engine.url + path, json={**body, **more}) as response:
        return response.status, await response.text(), {name.lower(): value for name, value in response.headers.items()}


async def test_speaks_to_the_stock_client(engine: EngineProcess) -> None:
    async with AsyncOpenAI(base_url=engine.url, api_key="none", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["fake", "other"]
        chat = await client.chat.completions.create(
            model="other", messages=[{"role": "user", "content": "x"}], user="chat-1"
        )
        assert "chat-1 " in (chat.choices[0].message.content or "")
        text = await client.completions.create(model="fake", prompt="x", user="text-1")
        assert text.choices[0].text.startswith("text-1 ")
        vectors = await client.embeddings.create(model="fake", input="x", user="vector-1", encoding_format="float")
        assert len(vectors.data[0].embedding) == 16
        response = await client.responses.create(model="fake", input="x", user="response-1")
        assert response.output_text.startswith("response-1 ")
    counters = await engine.counters()
    assert counters.received == {"chat-1": 1, "text-1": 1, "vector-1": 1, "response-1": 1}
    assert counters.answered == counters.received


async def test_answers_have_the_size_asked_for(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    for custom_id in ("a", "a-much-longer-one"):
        status, text, headers = await _ask(session, engine, custom_id)
        assert (status, len(text)) == (200, 1000)
        assert json.loads(text)["choices"][0]["message"]["content"].startswith(custom_id)
        assert headers["x-request-id"].startswith("req-")


async def test_takes_a_body_in_many_pieces_and_pipelined_requests(engine: EngineProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    body = b'{"model":"fake","user":"piece-%d","x":"' + b"y" * 300_000 + b'"}'
    for number in (1, 2):
        one = body % number
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nCONTENT-LENGTH: %d\r\n\r\n" % len(one)
        for piece in (head[:10], head[10:], one[:5], one[5:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)
    for _ in range(2):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert len(await reader.readexactly(1000)) == 1000
    writer.close()
    await writer.wait_closed()
    assert (await engine.counters()).answered == {"piece-1": 1, "piece-2": 1}


async def test_refuses_unknown_models_and_urls(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    status, text, _ = await _ask(session, engine, "a", model="gpt-9")
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")
    assert (await _ask(session, engine, "a", path="/nothing"))[0] == 404
    assert (await engine.counters()).refused_total == 1


async def test_latency_is_kept(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(latency=0.2)
    start = asyncio.get_running_loop().time()
    await asyncio.gather(*(_ask(session, engine, f"r-{n}") for n in range(20)))
    assert 0.2 <= asyncio.get_running_loop().time() - start < 1.0
    counters = await engine.counters()
    assert (counters.max_in_flight, counters.in_flight) == (20, 0)


def test_lognormal_latency_keeps_the_mean_and_is_fixed_per_request() -> None:
    times = [request_latency(b"r-%d" % n, 0.1, 1.5) for n in range(50_000)]
    assert sum(times) / len(times) == pytest.approx(0.1, rel=0.1)
    assert max(times) > 2
    assert sorted(times)[25_000] < 0.05
    assert request_latency(b"r-7", 0.1, 1.5) == times[7]
    assert request_latency(b"r-7", 0.1, 0) == 0.1


async def test_beyond_its_limit_it_answers_429(session: aiohttp.ClientSession) -> None:
    async with EngineProcess(latency=0.3, max_concurrent=3, retry_after=7) as engine:
        answers = await asyncio.gather(*(_ask(session, engine, f"r-{n}") for n in range(5)))
        assert sorted(status for status, _, _ in answers) == [200, 200, 200, 429, 429]
        assert {headers.get("retry-after") for status, _, headers in answers if status == 429} == {"7"}
        assert (await engine.counters()).max_in_flight == 3


async def test_status_with_match_and_times(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(mode="status", status=503, retry_after=20, match="bad", times=2)
    assert (await _ask(session, engine, "good"))[0] == 200
    for _ in range(2):
        status, text, headers = await _ask(session, engine, "bad")
        assert (status, headers["retry-after"]) == (503, "20")
        assert json.loads(text)["error"]["type"] == "server_error"
    assert (await _ask(session, engine, "bad"))[0] == 200
    counters = await engine.counters()
    assert (counters.received, counters.answered) == ({"good": 1, "bad": 3}, {"good": 1, "bad": 1})
    assert counters.refused_total == 2


async def test_times_each_counts_per_custom_id(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(mode="status", status=500, times_each=1)
    assert [(await _ask(session, engine, name))[0] for name in ("a", "b", "a", "b")] == [500, 500, 200, 200]


async def test_fraction_strikes_some_and_throws_again(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(mode="status", status=429, fraction=0.3, latency=0)
    first = [(await _ask(session, engine, f"r-{n}"))[0] for n in range(200)]
    assert 30 < first.count(429) < 90
    second = [(await _ask(session, engine, f"r-{n}"))[0] for n in range(200)]
    assert first != second
    await engine.reset_counters()
    assert [(await _ask(session, engine, f"r-{n}"))[0] for n in range(200)] == first


async def test_hang_lasts_until_the_client_goes(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(mode="hang", match="h")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_ask(session, engine, "h"), 0.2)
    await _settled(engine, aborted=1)
    assert (await engine.counters()).answered == {}


async def test_reset_breaks_off_mid_answer(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(mode="reset", times=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    body = b'{"model":"fake","user":"cut"}'
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1000)
    writer.close()
    await engine.control(mode="reset", times=1)
    with pytest.raises(aiohttp.ClientError):
        await _ask(session, engine, "cut")
    assert (await _ask(session, engine, "cut"))[0] == 200
    counters = await engine.counters()
    assert (counters.received, counters.answered, counters.aborted) == ({"cut": 3}, {"cut": 1}, 0)


async def test_not_json(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(mode="not_json")
    status, text, headers = await _ask(session, engine, "a")
    assert (status, text, headers["content-type"]) == (200, "<html>upstream busy</html>", "text/html")


async def test_refuse_closes_the_port_for_a_while(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(latency=0.2)
    running = asyncio.create_task(_ask(session, engine, "running"))
    await asyncio.sleep(0.1)
    await engine.control(mode="refuse", seconds=0.6)
    assert (await running)[0] == 200
    with pytest.raises(aiohttp.ClientConnectorError):
        await _ask(session, engine, "refused")
    await asyncio.sleep(0.7)
    assert (await _ask(session, engine, "again"))[0] == 200
    assert "refused" not in (await engine.counters()).received


async def test_a_client_that_goes_is_counted_as_aborted(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    await engine.control(latency=5)
    task = asyncio.create_task(_ask(session, engine, "gone"))
    await _settled(engine, in_flight=1)
    task.cancel()
    await _settled(engine, in_flight=0)
    assert (await engine.counters()).aborted == 1


async def test_wrong_scripts_are_refused(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    for script in ({"mode": "explode"}, {"tiems": 3}):
        async with session.post(f"{engine.root}/control", json=script) as response:
            assert response.status == 400


async def test_the_log_is_a_witness_that_survives_a_kill(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with EngineProcess(log=log) as engine:
        port = engine.port
        await _ask(session, engine, "one")
        await engine.control(mode="status", status=500)
        await _ask(session, engine, "two")
        await engine.control(mode="hang")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_ask(session, engine, "three"), 0.1)
        await asyncio.sleep(0.2)
        await engine.restart()
        assert engine.port == port
        assert (await engine.counters()).received_total == 0
        await _ask(session, engine, "four")
        await engine.stop()
    lines = [line.split(" ") for line in log.read_text().splitlines()]
    assert [" ".join(line[1:]) for line in lines] == [
        "recv one 0",
        "sent one 200",
        "recv two 0",
        "sent two 500",
        "recv three 0",
        "abort three 0",
        "recv four 0",
        "sent four 200",
    ]
    assert [int(line[0]) for line in lines] == sorted(int(line[0]) for line in lines)


async def test_runs_in_process(session: aiohttp.ClientSession) -> None:
    engine = Engine(EngineOptions())
    port = await engine.start()
    async with session.post(f"http://127.0.0.1:{port}/v1/completions", json={"user": "in"}) as response:
        assert response.status == 200
    assert engine.counters().answered == {"in": 1}
    await engine.close()


async def _settled(engine: EngineProcess, **wanted: int) -> None:
    async with asyncio.timeout(5):
        while True:
            counters = await engine.counters()
            if all(getattr(counters, name) == value for name, value in wanted.items()):
                return
            await asyncio.sleep(0.02)
