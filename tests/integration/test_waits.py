"""Every wait of a batch is shown within seconds: in the API, by the commands, in Temporal, and in docs/waits.md."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from click.testing import CliRunner
from openai.types import Batch
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client

from activities import validate_input, write_files
from activities.temporal.connection import connect
from activities.upstreams import silence
from api.cli.display import counts_of
from api.cli.main import main
from api.client import TERMINAL
from api.http.server import listen, serve
from tests.fakes.engine import Engine, EngineOptions
from tests.fakes.engine_script import Script
from tests.free_ports import free_ports
from tests.integration.stack import Stack, progress_of, request, until

DOCS = Path(__file__).parents[2] / "docs" / "waits.md"
WITHIN = 5.0
"""Seconds from the begin of a wait until it is shown; on a loaded machine its begin itself may be late."""
SLACK = 5.0
MODELS = tuple(f"m-{number}" for number in range(50))


def pattern(sentence: str) -> str:
    """A sentence without what differs from case to case: counts, times, names and addresses."""
    for what, stands_for in (
        (r"https?://[^\s)]+", "URL"),
        (r"[a-z0-9.]+:\d+", "ADDRESS"),
        (r"batch_[0-9a-f]+", "BATCH"),
        (r'"[^"]+"', "NAME"),
        (r"[0-9][0-9.,]*[0-9]|[0-9]", "N"),
        (r"N (s|min|h|d)\b", "TIME"),
        (r"next try (in TIME|at any moment)", "NEXT"),
    ):
        sentence = re.sub(what, stands_for, sentence)
    return sentence


@pytest.fixture(scope="module")
def documented() -> set[str]:
    """The sentences of docs/waits.md, each as a pattern."""
    return {pattern(sentence) for sentence in re.findall(r"\| `(Waiting: .*?)` \|", DOCS.read_text())}


def is_documented(kind: str, shown: str, documented: set[str]) -> bool:
    if kind == "store":  # whether a request or the worker was the first to meet it
        shown = re.sub("; (N of N requests wait|NEXT)", "", shown)
    return shown in documented


class World:
    """One running stack that all cases share, behind a real socket, for the commands."""

    def __init__(self, it: Stack, engine: Engine, port: int, folder: Path) -> None:
        self.it = it
        self.engine = engine
        self.engine_port = port
        self.folder = folder
        self.url = ""
        self._models = iter(MODELS)

    async def submit(self, count: int) -> str:
        """A batch for a model of its own: what an upstream refuses one model makes no other wait."""
        model = self.next_model()
        return await self.it.submit([request(f"r-{number}", model=model) for number in range(count)])

    def next_model(self) -> str:
        return next(self._models)

    async def shows(self, batch_id: str, kind: str, gist: str = "") -> dict[str, Any]:
        """What the API tells of a wait of this kind, as soon as it does, with these words in it."""
        started = time.monotonic()

        def waits(batch: Batch) -> bool:
            progress = progress_of(batch)
            return bool(
                progress["waiting"] and progress["waiting"]["kind"] == kind and gist in progress["waiting_reason"]
            )

        batch = await self.it.until(batch_id, waits, WITHIN + SLACK)
        assert time.monotonic() - started < WITHIN + SLACK
        return progress_of(batch)

    async def command(self, *arguments: str, url: str = "") -> str:
        """What a command prints, on one line."""
        options = {"OPENAI_BASE_URL": url or self.url, "COLUMNS": "45"}
        result = await asyncio.to_thread(CliRunner().invoke, main, [*arguments], env=options)
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    async def in_temporal(self, batch_id: str) -> tuple[str, str]:
        """The current details of the workflow, and the failures of its pending activities."""
        workflow = self.it.workflow(batch_id)
        metadata = await workflow.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
        pending = (await workflow.describe()).raw_description.pending_activities
        return metadata.current_details, "\n".join(one.last_failure.message for one in pending)

    async def is_shown_everywhere(
        self, batch_id: str, kind: str, documented: set[str], words: str = ""
    ) -> dict[str, Any]:
        """Fields, sentence, `status` and `list` of a wait agree, and the sentence is in the documentation."""
        progress = await self.shows(batch_id, kind, words)
        assert progress["next_attempt_at"] == progress["waiting"]["next_attempt_at"]
        sentence = progress["waiting_reason"]
        assert progress["waiting"]["subject"] in sentence
        assert progress["waiting"]["reason"] in sentence
        shown = pattern(sentence)
        assert is_documented(kind, shown, documented), sentence
        sentence = shown.removeprefix("Waiting: ").removesuffix(".")
        gist = sentence.partition("; ")[0]
        for arguments in (("status", batch_id), ("list", "--limit", "3")):

            async def prints(arguments: tuple[str, ...] = arguments) -> bool:
                return gist in pattern(await self.command(*arguments))

            await until(prints, f"{arguments[0]}: {gist}", WITHIN)
        return progress

    async def ends(self, batch_id: str) -> None:
        """Cancel what was only there to wait."""
        self.engine.follow(Script())
        await self.it.openai.batches.cancel(batch_id)
        await self.it.finished(batch_id)


@pytest.fixture(scope="module")
async def world(temporal: Client, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[World]:
    folder = tmp_path_factory.mktemp("waits")
    engine = Engine(EngineOptions(models=MODELS))
    port = await engine.start()
    nobody = free_ports(2)
    entries = [f'name = "gpu"\nurl = "http://127.0.0.1:{port}/v1"\nmodels = ["m-*"]\nmax_in_flight = 4']
    entries += [f'name = "{name}"\nurl = "http://127.0.0.1:{port}/v1"' for name, port in zip("ab", nobody, strict=True)]
    (folder / "upstreams.toml").write_text("\n\n".join(f"[[upstream]]\n{entry}" for entry in entries))
    async with Stack.open(temporal, folder / "store", upstreams=str(folder / "upstreams.toml")) as it:
        await it.start_worker()
        world = World(it, engine, port, folder)
        async with served(it, it.temporal) as world.url:
            yield world
    await engine.close()


@contextlib.asynccontextmanager
async def served(it: Stack, temporal: Client) -> AsyncGenerator[str]:
    """The API on a socket; its base URL."""
    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as listener:
        app = it.app if temporal is it.temporal else it.app_with(temporal)
        serving = asyncio.create_task(serve(app, listener, stop))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        stop.set()
        await serving


@pytest.fixture(autouse=True)
async def all_end(world: World) -> AsyncGenerator[None]:
    """No case leaves a batch behind that others would wait for."""
    yield
    for batch in [batch async for batch in world.it.openai.batches.list(limit=100)]:
        if batch.status not in TERMINAL:
            await world.ends(batch.id)


def labelled(world: World) -> str:
    return f'upstream "gpu" (http://127.0.0.1:{world.engine_port}/v1)'


# Upstreams


async def test_an_upstream_that_is_down(world: World, documented: set[str]) -> None:
    await world.engine.close()
    batch_id = await world.submit(3)
    progress = await world.is_shown_everywhere(batch_id, "upstream", documented)
    waiting = progress["waiting"]
    assert (waiting["subject"], waiting["reason"]) == (labelled(world), "refuses connections")
    assert (waiting["ends_by"], waiting["requests"]) == ("itself", 3)
    assert -5 < waiting["next_attempt_at"] - time.time() < 10
    details, failure = await world.in_temporal(batch_id)
    assert "| upstreams | gpu |" in details
    assert "Pending Activities" in details
    assert f"1 of 1 requests to retry: {labelled(world)} refuses connections" in failure.splitlines()
    await world.engine.start(port=world.engine_port)
    assert (await world.it.finished(batch_id)).counts == (3, 3, 0)


@pytest.mark.parametrize(
    ("script", "reason", "ends_by"),
    [
        ({"status": 503}, "is overloaded (HTTP 503 Service Unavailable)", "itself"),
        (
            {"status": 429, "retry_after": 30},
            "is overloaded (HTTP 429 Too Many Requests) and asks to wait 30 s",
            "itself",
        ),
        ({"status": 500}, "answered HTTP 500 Internal Server Error", "operator"),
        (
            {"status": 401},
            "rejects the API key that Everbatch is configured to send it (HTTP 401 Unauthorized)",
            "operator",
        ),
        (
            {"mode": "page", "status": 404},
            "answered HTTP 404 Not Found, a page that is not the engine's; is its base URL right? Most end in /v1",
            "operator",
        ),
    ],
    ids=["503", "429 and Retry-After", "500", "401", "404 page"],
)
async def test_an_upstream_that_refuses_everything(
    world: World, documented: set[str], script: dict[str, Any], reason: str, ends_by: str
) -> None:
    world.engine.follow(msgspec.convert({"mode": "status", **script}, Script))
    retry_after, submitted = script.get("retry_after", 0), time.time()
    batch_id = await world.submit(3)
    progress = await world.is_shown_everywhere(batch_id, "upstream", documented)
    waiting = progress["waiting"]
    assert (waiting["subject"], waiting["reason"], waiting["ends_by"]) == (labelled(world), reason, ends_by)
    if retry_after:
        assert waiting["next_attempt_at"] - submitted >= retry_after - 1  # in whole seconds

    def all_wait(batch: Batch) -> bool:
        waiting = progress_of(batch)["waiting"]
        return waiting is not None and waiting["requests"] == 3

    await world.it.until(batch_id, all_wait)
    assert reason in (await world.in_temporal(batch_id))[1]
    await world.ends(batch_id)


async def test_an_engine_that_hangs(world: World, documented: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_SECONDS", "MIN_SECONDS"):
        monkeypatch.setattr(silence, name, 1.0)
    model = world.next_model()
    lines = [request(f"r-{number}", model=model) for number in range(3)]
    assert (await world.it.run(lines)).counts == (3, 3, 0)
    world.engine.follow(Script(mode="hang"))
    batch_id = await world.it.submit(lines)
    waiting = (await world.is_shown_everywhere(batch_id, "upstream", documented))["waiting"]
    assert waiting["subject"] == labelled(world)
    assert waiting["reason"].startswith("has 3 requests in flight and has answered none for ")
    assert "(each is given up after 600 s; lately an answer took up to" in waiting["reason"]
    await world.ends(batch_id)


async def test_a_model_of_which_nobody_can_tell_whose_it_is(world: World, documented: set[str]) -> None:
    batch_id = await world.it.submit([request("1", model="other")])
    waiting = (await world.is_shown_everywhere(batch_id, "model", documented))["waiting"]
    assert re.search('may be served by upstream "a" .* or upstream "b"', waiting["reason"])
    assert "a model that the batch names" in (await world.in_temporal(batch_id))[1]
    await world.ends(batch_id)


# The user's own doing, and other batches


async def test_a_paused_batch(world: World, documented: set[str]) -> None:
    world.engine.follow(Script(mode="status", status=503, retry_after=60))
    batch_id = await world.submit(3)
    await world.shows(batch_id, "upstream")
    assert (await world.it.http.post(f"/v1/batches/{batch_id}/pause")).status_code == 200
    waiting = (await world.is_shown_everywhere(batch_id, "pause", documented))["waiting"]
    assert waiting["ends_by"] == "user"
    assert f"POST /v1/batches/{batch_id}/resume" in waiting["reason"]
    assert "Waiting: the batch is paused since 20" in (await world.in_temporal(batch_id))[0]
    await world.ends(batch_id)


async def test_behind_other_batches(world: World, documented: set[str]) -> None:
    world.engine.follow(Script(mode="hang"))
    first = await world.submit(501)
    await world.it.until(first, lambda batch: progress_of(batch).get("in_flight") == 4)
    second = await world.submit(40)
    waiting = (await world.is_shown_everywhere(second, "other_batches", documented))["waiting"]
    assert (waiting["subject"], waiting["ends_by"]) == ("other batches", "itself")
    assert "501 of their requests" in waiting["reason"]
    for batch_id in (second, first):
        await world.ends(batch_id)


# The store


@contextlib.contextmanager
def refusing(store: Any, number: int) -> Generator[None]:
    """A store of which every write fails as on a full or read-only disk."""

    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_make_temporary", fail)
        yield


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "its disk is full"), (errno.EROFS, "it is read-only")],
    ids=["full", "read-only"],
)
async def test_a_store_that_cannot_be_written(world: World, documented: set[str], number: int, said: str) -> None:
    world.engine.follow(Script(latency=0.5))
    batch_id = await world.submit(101)
    await world.it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed)
    with refusing(world.it.store, number):
        waiting = (await world.is_shown_everywhere(batch_id, "store", documented))["waiting"]
    assert (waiting["subject"], waiting["reason"]) == ("the store", f"cannot be used: {said}")
    assert waiting["ends_by"] == "operator"
    world.engine.follow(Script(latency=0.0))
    assert (await world.it.finished(batch_id)).counts == (101, 101, 0)


async def test_a_store_that_is_gone(world: World, documented: set[str]) -> None:
    world.engine.follow(Script(mode="hang"))
    batch_id = await world.submit(3)
    await world.it.until(batch_id, lambda batch: batch.status == "in_progress")
    root = world.it.settings.store
    os.rename(root, f"{root}-elsewhere")
    try:
        progress = await world.shows(batch_id, "store")
        assert counts_of(await world.it.get(batch_id)) == (3, 0, 0)  # as Temporal knows it
        assert is_documented("store", pattern(progress["waiting_reason"]), documented), progress["waiting_reason"]
        assert progress["waiting"]["reason"] == "cannot be used: its directory is empty or missing"
        assert "its directory is empty or missing" in await world.command("status", batch_id)
    finally:
        os.rename(f"{root}-elsewhere", root)
    await world.ends(batch_id)


# Everbatch itself


async def test_without_a_worker(world: World, documented: set[str]) -> None:
    await world.it.stop_worker()
    try:
        batch_id = await world.submit(2)
        waiting = (await world.is_shown_everywhere(batch_id, "worker", documented, "no worker"))["waiting"]
        queue = world.it.settings.task_queue
        assert (waiting["subject"], waiting["ends_by"]) == (f'task queue "{queue}"', "operator")
        assert waiting["reason"] == "has no worker that answers"
    finally:
        await world.it.start_worker()
    assert (await world.it.finished(batch_id)).counts == (2, 2, 0)


async def test_while_temporal_is_down(world: World, documented: set[str]) -> None:
    world.engine.follow(Script(mode="hang"))
    batch_id = await world.submit(2)
    await world.it.until(batch_id, lambda batch: batch.status == "in_progress")
    nowhere = await connect("127.0.0.1:1", lazy=True)
    batch = await world.it.another_api(temporal=nowhere).batches.retrieve(batch_id)
    progress = progress_of(batch)
    assert (progress["waiting"]["kind"], progress["waiting"]["ends_by"]) == ("temporal", "itself")
    assert pattern(progress["waiting_reason"]) in documented, progress["waiting_reason"]
    async with served(world.it, nowhere) as url:
        assert "waiting: Temporal at temporal.example:7233 does not answer" in await world.command(
            "status", batch_id, url=url
        )
    await world.ends(batch_id)


@pytest.mark.parametrize(
    ("kind", "where", "method"),
    [("validating", validate_input.ValidateInput, "_scan"), ("finalizing", write_files.WriteFiles, "_merge_again")],
    ids=["validating", "finalizing"],
)
async def test_a_step_that_takes_long(
    world: World, documented: set[str], monkeypatch: pytest.MonkeyPatch, kind: str, where: type, method: str
) -> None:
    go_on = threading.Event()
    real = getattr(where, method)

    def held(*arguments: Any) -> Any:
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr(where, method, held)
    batch_id = await world.submit(2)
    try:
        await world.is_shown_everywhere(batch_id, kind, documented)
        assert "Waiting: the" in (await world.in_temporal(batch_id))[0]
    finally:
        go_on.set()
    assert (await world.it.finished(batch_id)).counts == (2, 2, 0)
