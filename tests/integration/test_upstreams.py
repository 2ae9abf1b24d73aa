"""Several engines behind one server: whose requests go where, and that none waits for an engine it is not for."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from activities.temporal.deployment import NotPromotedError, promote
from activities.upstreams.config import Upstream
from activities.upstreams.headroom import FIRST
from api.gateway.temporal import TemporalGateway
from tests.fakes.engine import Engine, EngineOptions
from tests.fakes.engine_script import Script
from tests.fakes.nim import NimEngine
from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, progress_of, request, requests, until
from tests.integration.test_worker_versions import deployed, promoted
from workflows.ids import BatchRef


class Engines:
    """Started engines, and the file that names them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.entries: list[str] = []
        self.engines: list[Engine] = []

    async def start(self, name: str, *models: str, kind: type[Engine] = Engine, replicas: int = 1, **more: Any) -> None:
        """Args: ``more`` goes into the file as it is; a ``latency`` is the engine's."""
        latency = more.pop("latency", 0.0)
        urls: list[str] = []
        for _ in range(replicas):
            engine = kind(EngineOptions(latency=latency, models=models or ("fake",)))
            self.engines.append(engine)
            urls.append(f"http://127.0.0.1:{await engine.start()}/v1")
        lines = [f'name = "{name}"', f"urls = {urls}", *(f"{key} = {value}" for key, value in more.items())]
        self.entries.append("\n".join(["[[upstream]]", *lines]))

    @property
    def path(self) -> str:
        return self.save("upstreams.toml")

    def save(self, name: str) -> str:
        path = self._folder / name
        path.write_text("\n\n".join(self.entries))
        return str(path)

    def is_at_work(self, engine: int, requests: int) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return self.engines[engine].counters().in_flight == requests

        return look

    async def close(self) -> None:
        for engine in self.engines:
            await engine.close()


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    engines = Engines(tmp_path)
    yield engines
    await engines.close()


def taking_turns(count: int, *models: str) -> list[dict[str, Any]]:
    return [request(f"r-{n}", model=models[n % len(models)]) for n in range(count)]


def port_of(it: Stack, upstream: int) -> int:
    url = it.inference[upstream].upstream.urls[0]
    return int(url.rpartition(":")[2].removesuffix("/v1"))


def requests_waiting(batch: Batch) -> int | None:
    waiting = progress_of(batch).get("waiting")
    return waiting["requests"] if waiting else None


@pytest.mark.parametrize("count", [20, 1200], ids=["single", "grouped"])
async def test_one_batch_over_an_engine_that_lives_and_one_that_is_down(
    stack: MakeStack, engines: Engines, count: int
) -> None:
    await engines.start("up", "a")
    await engines.start("down", "b", models='["b"]')
    live, dead = engines.engines
    it = await stack(upstreams=engines.path)
    await dead.close()
    batch_id = await it.submit(taking_turns(count, "a", "b"))
    batch = await it.until(batch_id, lambda batch: live.counters().answered_total == count // 2, seconds=15)
    batch = await it.until(
        batch_id,
        lambda batch: (
            batch.request_counts
            and batch.request_counts.completed == count // 2
            and requests_waiting(batch) == count // 2
        ),
    )
    waiting = progress_of(batch)["waiting"]
    assert waiting["subject"] == f'upstream "down" (http://127.0.0.1:{port_of(it, 1)}/v1)'
    assert waiting["reason"] == "refuses connections"
    assert 'upstream "up"' not in progress_of(batch)["waiting_reason"]
    await dead.start(port=port_of(it, 1))
    finished = await it.finished(batch_id)
    assert finished.counts == (count, count, 0)
    assert finished.answered == [f"r-{n}" for n in range(count)]
    assert live.counters().received == {f"r-{n}": 1 for n in range(0, count, 2)}
    assert dead.counters().received == {f"r-{n}": 1 for n in range(1, count, 2)}


async def test_who_is_waited_for_is_reported_while_the_other_is_busy(stack: MakeStack, engines: Engines) -> None:
    await engines.start("up", "a", models='["a"]', max_in_flight=5)
    await engines.start("down", "b", models='["b"]', max_in_flight=7)
    it = await stack(upstreams=engines.path)
    await engines.engines[1].close()
    engines.engines[0].follow(Script(mode="hang"))
    batch_id = await it.submit(taking_turns(1200, "a", "b"))

    def is_shown(batch: Batch) -> bool:
        return 'upstream "down"' in (progress_of(batch).get("waiting_reason") or "")

    # Groups tell with their heartbeats, so the limits come a little later.
    # While the one that is down is asked again, it counts with that one request.
    limits = ("in_flight", "in_flight_limit")
    await it.until(batch_id, lambda batch: is_shown(batch) and [progress_of(batch)[name] for name in limits] == [5, 5])
    seen = [is_shown(await it.get(batch_id)) for _ in range(40)]
    assert seen.count(True) > 35  # but for the moments in which it is asked again
    await it.openai.batches.cancel(batch_id)
    assert (await it.finished(batch_id)).counts == (1200, 0, 1200)


async def test_a_batch_does_not_wait_behind_one_for_an_engine_that_is_down(stack: MakeStack, engines: Engines) -> None:
    await engines.start("up", "a", latency=0.05)
    await engines.start("down", "b", models='["b"]')
    it = await stack(upstreams=engines.path)
    small = [request(f"s-{n}", model="a") for n in range(150)]
    started = time.monotonic()
    assert (await it.run(small)).counts == (150, 150, 0)
    alone = time.monotonic() - started

    await engines.engines[1].close()
    large = await it.submit([request(f"l-{n}", model="b") for n in range(5000)])
    await it.until(large, lambda batch: progress_of(batch).get("waiting_reason"))
    started = time.monotonic()
    assert (await it.run(small)).counts == (150, 150, 0)
    behind = time.monotonic() - started
    assert behind < 3 * alone + 1
    cancelled = await it.openai.batches.cancel(large)
    assert cancelled.status in ("cancelling", "cancelled")
    assert (await it.finished(large)).counts == (5000, 0, 5000)


async def test_an_upstream_with_other_clients_is_shown_with_what_it_does_for_them(
    stack: MakeStack, engines: Engines
) -> None:
    more: dict[str, Any] = {"interactive_headroom": 0.25, "body": "{ priority = 100 }"}
    await engines.start("shared", "a", models='["a"]', **more)
    await engines.start("ours", "b", models='["b"]')
    it = await stack(upstreams=engines.path)
    for engine in engines.engines:
        engine.follow(Script(mode="hang"))
    batch_id = await it.submit(taking_turns(120, "a", "b"))
    gateway = TemporalGateway(
        it.temporal, it.store, it.settings.task_queue, "", [client.upstream for client in it.inference]
    )

    async def is_shown() -> bool:
        progress = (await gateway.find(BatchRef("default", batch_id))).progress
        assert progress
        return [one.model_dump() for one in progress.shared_upstreams] == [
            {"name": "shared", "interactive_headroom": 0.25, "body": {"priority": 100}}
        ]

    await until(is_shown, "shown")
    await until(engines.is_at_work(0, FIRST), "as many in flight as it begins with")
    await it.openai.batches.cancel(batch_id)
    assert (await it.finished(batch_id)).counts == (120, 0, 120)
    assert engines.engines[0].counters().max_in_flight == FIRST


async def test_an_upstream_that_running_batches_need_is_missed(stack: MakeStack, engines: Engines) -> None:
    await engines.start("gone", "a", models='["a"]')
    it = await stack(upstreams=engines.path)
    await engines.engines[0].close()
    batch_id = await it.submit([request("r-1", model="a")])
    await it.until(batch_id, lambda batch: 'upstream "gone"' in (progress_of(batch).get("waiting_reason") or ""))
    gateway = TemporalGateway(
        it.temporal, it.store, it.settings.task_queue, "", [Upstream(name="other", urls=("http://e",))]
    )

    async def missed() -> bool:
        progress = (await gateway.find(BatchRef("default", batch_id))).progress
        return progress is not None and "is not configured any more" in (progress.waiting_reason or "")

    await until(missed, "missed")
    await it.openai.batches.cancel(batch_id)
    assert (await it.finished(batch_id)).counts == (1, 0, 1)


@pytest.mark.parametrize(("window", "code"), [("24h", "batch_cancelled"), ("4s", "batch_expired")])
async def test_a_batch_ends_whose_upstream_no_worker_has_any_more(
    stack: MakeStack, engines: Engines, window: str, code: str
) -> None:
    await engines.start("up", "a", models='["a"]')
    await engines.start("gone", "b", models='["b"]')
    it = await stack(upstreams=engines.path, completion_windows="4s,24h")
    await engines.engines[1].close()
    batch_id = await it.submit(taking_turns(20, "a", "b"), window=window)
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 10)
    await it.stop_worker()
    await it.inference.pop().close()
    await it.start_worker()
    if code == "batch_cancelled":
        await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id, seconds=20)
    assert finished.counts == (20, 10, 10)
    assert set(finished.error_codes.values()) == {code}


async def test_a_version_that_lacks_an_upstream_that_is_waited_for_is_not_promoted(
    stack: MakeStack, engines: Engines
) -> None:
    await engines.start("up", "a", models='["a"]')
    file_of_one = engines.save("one.toml")
    await engines.start("gone", "b", models='["b"]')
    name = f"everbatch-{uuid.uuid4().hex[:8]}"
    old = await stack(upstreams=engines.path, deployment=name, build_id="one")
    await until(lambda: promoted(old.temporal, name, "one"), "the first version")
    await engines.engines[1].close()
    batch_id = await old.submit(taking_turns(2, "a", "b"))
    await old.until(batch_id, lambda batch: progress_of(batch).get("waiting_reason"))
    async with deployed(old, "two", upstreams=file_of_one) as new:

        async def refused() -> bool:
            with pytest.raises(NotPromotedError) as caught:
                await promote(new.temporal, name, "two")
            return "an upstream that the workers of this version do not have" in str(caught.value)

        await until(refused, "the second version is seen, and lacks a queue")
        await old.openai.batches.cancel(batch_id)
        assert (await old.finished(batch_id)).counts == (2, 1, 1)


async def test_a_cancelled_batch_over_several_has_a_line_for_each_request(stack: MakeStack, engines: Engines) -> None:
    await engines.start("up", "a", models='["a"]')
    await engines.start("down", "b", models='["b"]')
    it = await stack(upstreams=engines.path)
    await engines.engines[1].close()
    batch_id = await it.submit(taking_turns(900, "a", "b", "a"))
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == 600)
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    assert finished.counts == (900, 600, 300)
    assert finished.answered == [f"r-{n}" for n in range(900) if n % 3 != 1]
    assert finished.refused == [f"r-{n}" for n in range(900) if n % 3 == 1]
    assert set(finished.error_codes.values()) == {"batch_cancelled"}


async def test_a_replica_that_goes_is_made_up_for_by_the_other(stack: MakeStack, engines: Engines) -> None:
    await engines.start("both", replicas=2, latency=0.02, max_in_flight=16)
    first, second = engines.engines
    it = await stack(upstreams=engines.path, max_attempts=3)
    batch_id = await it.submit(requests(1500))
    await it.until(batch_id, lambda _: first.counters().answered_total > 100 and second.counters().answered_total > 100)
    await first.close()
    finished = await it.finished(batch_id)
    assert finished.counts == (1500, 1500, 0)
    # What was in flight there is asked for again, and nothing else.
    twice = set(first.counters().answered) & set(second.counters().answered)
    assert not twice
    assert first.counters().max_in_flight <= 16


async def test_names_aliases_and_unknown_models(stack: MakeStack, engines: Engines) -> None:
    await engines.start("a", "org/a", models='["org/a", "org/a-*"]', aliases='{ "small" = "org/a" }')
    await engines.start("b", "b-1", "b-2")
    first, second = engines.engines
    it = await stack(upstreams=engines.path)
    lines = [request(f"r-{model}", model=model) for model in ("org/a", "small", "b-1", "b-2")]
    finished = await it.run(lines)
    assert finished.counts == (4, 4, 0)
    assert set(first.counters().answered) == {"r-org/a", "r-small"}
    assert set(second.counters().answered) == {"r-b-1", "r-b-2"}
    assert {line["response"]["body"]["model"] for line in finished.output} == {"org/a", "b-1"}  # as the engine says
    assert [model.id async for model in it.openai.models.list()] == ["org/a", "small", "b-1", "b-2"]

    failed = await it.run([*lines, request("r-none", model="none")])
    assert failed.batch.status == "failed"
    assert failed.batch.errors
    assert failed.batch.errors.data
    assert [(error.code, error.line) for error in failed.batch.errors.data] == [("model_not_found", 5)]
    await second.close()
    assert [model.id async for model in it.openai.models.list()] == ["org/a", "small"]


async def test_nim_gets_what_nim_takes(stack: MakeStack, engines: Engines) -> None:
    await engines.start("nim", "meta/m", kind=NimEngine, dialect='"nim"', aliases='{ "m" = "meta/m" }')
    (engine,) = engines.engines
    assert isinstance(engine, NimEngine)
    it = await stack(upstreams=engines.path)
    image = {"type": "image_url", "image_url": {"url": "iVBORw0KGgo="}}
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    lines = [
        request("greedy", model="m", temperature=0),
        request("sampled", model="meta/m", top_k=40, repetition_penalty=1.1),
        request("structured", model="m", response_format=wanted),
        request("tools", model="m", tool_choice="auto"),
        request("image", model="m", messages=[{"role": "user", "content": [image]}]),
        request("own", model="m", top_k=5, nvext={"top_k": 7}),
    ]
    finished = await it.run(lines)
    assert finished.refused == []
    assert finished.counts == (6, 6, 0)
    assert engine.bodies["greedy"]["model"] == "meta/m"
    assert {name: body["nvext"] for name, body in engine.bodies.items()} == {
        "greedy": {"top_k": -1},
        "sampled": {"top_k": 40, "repetition_penalty": 1.1},
        "structured": {"top_k": -1, "guided_json": schema},
        "tools": {"top_k": -1},
        "image": {"top_k": -1},
        "own": {"top_k": 7},
    }
    failed = await it.run([request("bad", model="m", top_k=0)])
    assert failed.batch.errors
    assert failed.batch.errors.data
    (error,) = failed.batch.errors.data
    assert (error.code, error.param, error.line) == ("invalid_value", "body.top_k", 1)
