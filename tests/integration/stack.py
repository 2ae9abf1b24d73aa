"""Everything of Everbatch in this process, but for Temporal: API, worker, store and a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from fastapi import FastAPI
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from openai.types import Batch
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.configured import load_upstreams, open_store
from activities.records.catalog import Catalog
from activities.settings import Settings
from activities.upstreams.client import InferenceClient
from activities.worker import BatchWorker
from api.app import create_app
from api.client import TERMINAL
from api.gateway.temporal import TemporalGateway
from api.tenants.keys import KeyFile
from tests.fakes.engine import Engine, EngineOptions
from tests.fakes.engine_script import Script
from workflows.contract import JANITOR_WORKFLOW
from workflows.types import DeleteExpiredInput, DeleteExpiredResult

T = TypeVar("T")

CHAT = "/v1/chat/completions"
POLL_SECONDS = (0.02, 0.1)
"""Pause after the first look and the longest one. Each look costs as much as a request of a batch does."""


async def until(probe: Callable[[], Awaitable[T]], what: str, seconds: float = 30) -> T:
    """Ask until the answer is true, and return it."""
    pause, longest = POLL_SECONDS
    deadline = time.monotonic() + seconds
    while not (answer := await probe()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(pause)
        pause = min(1.2 * pause, longest)
    return answer


def request(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    """A request line that the fake engine answers; ``body`` overrides, a value of ``...`` leaves a member out."""
    members: dict[str, Any] = {"model": "fake", "user": custom_id}
    if url == CHAT:
        members["messages"] = [{"role": "user", "content": f"say {custom_id}"}]
    elif url == "/v1/completions":
        members["prompt"] = f"say {custom_id}"
    else:
        members["input"] = f"say {custom_id}"
    members.update(body)
    members = {name: value for name, value in members.items() if value is not ...}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": members}


def requests(count: int, url: str = CHAT, prefix: str = "r") -> list[dict[str, Any]]:
    return [request(f"{prefix}-{number}", url) for number in range(count)]


def jsonl(lines: Iterable[dict[str, Any] | str]) -> bytes:
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()


@dataclass
class Finished:
    """A batch that has ended, with its files."""

    batch: Batch
    raw_output: bytes = b""
    raw_errors: bytes = b""
    output: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def take(self, kind: str, content: bytes) -> None:
        """Args: ``kind`` is ``output`` or ``errors``."""
        lines = [json.loads(line) for line in content.splitlines()]
        if kind == "output":
            self.raw_output, self.output = content, lines
        else:
            self.raw_errors, self.errors = content, lines

    @property
    def counts(self) -> tuple[int, int, int]:
        """Total, completed, failed."""
        counts = self.batch.request_counts
        assert counts
        return counts.total, counts.completed, counts.failed

    @property
    def answered(self) -> list[str]:
        return [line["custom_id"] for line in self.output]

    @property
    def refused(self) -> list[str]:
        return [line["custom_id"] for line in self.errors]

    @property
    def error_codes(self) -> dict[str, str]:
        return {line["custom_id"]: line["error"]["code"] for line in self.errors}


class Stack:
    def __init__(self, temporal: Client, settings: Settings, engine: Engine, engine_port: int) -> None:
        self.temporal = temporal
        self.settings = settings
        self.engine = engine
        self.engine_port = engine_port
        self.store = open_store(settings)
        self.catalog = Catalog(self.store)
        self.inference = [InferenceClient(upstream) for upstream in load_upstreams(settings)]
        self._stop: asyncio.Event | None = None
        self._worker: asyncio.Task[None] | None = None
        self.another_http()
        self.openai = self._openai(self.app)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, temporal: Client, folder: Path, *, latency: float = 0.0, **settings: Any
    ) -> AsyncGenerator[Stack]:
        engine = Engine(EngineOptions(latency=latency))
        port = await engine.start()
        only_upstream = {"upstream_url": f"http://127.0.0.1:{port}/v1", "upstream_api_key": "upstream-secret-key"}
        values: dict[str, Any] = {
            "store": str(folder),
            **({} if "upstreams" in settings else only_upstream),
            "task_queue": f"test-{uuid.uuid4().hex}",
            "completion_windows": "1s,2s,24h",
            "drain_timeout": 0.5,
        }
        stack = cls(temporal, Settings(**{**values, **settings}), engine, port)
        try:
            yield stack
        finally:
            await stack.stop_worker()
            for inference in stack.inference:
                await inference.close()
            await engine.close()

    def _openai(self, app: FastAPI, max_retries: int = 0) -> AsyncOpenAI:
        return AsyncOpenAI(
            api_key="client-secret-key",
            base_url="http://localhost/v1",
            http_client=DefaultAsyncHttpx2Client(transport=httpx2.ASGITransport(app)),
            max_retries=max_retries,
        )

    def app_with(self, temporal: Client | None) -> FastAPI:
        """The API of another process over the same store. Args: ``temporal`` is where it looks, else as the others."""
        gateway = TemporalGateway(
            temporal or self.temporal, self.store, self.settings.task_queue, "temporal.example:7233"
        )
        keys = KeyFile(Path(self.settings.keys_file)) if self.settings.keys_file else None
        return create_app(self.settings, gateway, self.store, self.inference, keys)

    def another_http(self) -> None:
        """Another API process over the same store."""
        self.app = self.app_with(None)
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), base_url="http://localhost")

    def another_api(self, max_retries: int = 0, temporal: Client | None = None) -> AsyncOpenAI:
        """A client of another API process over the same store."""
        return self._openai(self.app_with(temporal), max_retries)

    async def start_worker(self) -> None:
        assert self._worker is None, "a worker is running"
        self._stop = asyncio.Event()
        worker = BatchWorker(self.temporal, self.settings, self.store, self.inference)
        self._worker = asyncio.create_task(worker.run(self._stop))

    async def stop_worker(self) -> None:
        """As SIGTERM does. Does nothing when none is running."""
        if self._worker and self._stop:
            self._stop.set()
            worker, self._worker = self._worker, None
            await worker

    def script(self, **script: Any) -> None:
        """Tell the engine how to treat requests from now on."""
        self.engine.follow(Script(**script))

    def workflow(self, batch_id: str) -> WorkflowHandle[Any, Any]:
        return self.temporal.get_workflow_handle(batch_id)

    async def history_bytes(self, workflow_id: str) -> bytes:
        """All events as Temporal stores them: unlike in their JSON, texts in payloads can be searched for."""
        history = await self.workflow(workflow_id).fetch_history()
        return b"".join(event.SerializeToString() for event in history.events)

    # A client's steps

    async def upload(self, lines: bytes | Iterable[dict[str, Any] | str]) -> str:
        content = lines if isinstance(lines, bytes) else jsonl(lines)
        return (await self.openai.files.create(file=("in.jsonl", content), purpose="batch")).id

    async def create(self, file_id: str, endpoint: Any = CHAT, window: Any = "24h", **parameters: Any) -> Batch:
        return await self.openai.batches.create(
            input_file_id=file_id, endpoint=endpoint, completion_window=window, **parameters
        )

    async def submit(
        self, lines: bytes | Iterable[dict[str, Any] | str], endpoint: Any = CHAT, window: Any = "24h"
    ) -> str:
        return (await self.create(await self.upload(lines), endpoint, window)).id

    async def run(
        self, lines: bytes | Iterable[dict[str, Any] | str], endpoint: Any = CHAT, window: Any = "24h"
    ) -> Finished:
        return await self.finished(await self.submit(lines, endpoint, window))

    async def get(self, batch_id: str) -> Batch:
        return await self.openai.batches.retrieve(batch_id)

    async def until(self, batch_id: str, wanted: Callable[[Batch], object], seconds: float = 30) -> Batch:
        """Poll until the batch is as wanted."""
        latest: list[Batch] = []

        async def probe() -> Batch | None:
            latest[:] = [await self.get(batch_id)]
            return latest[0] if wanted(latest[0]) else None

        try:
            batch = await until(probe, batch_id, seconds)
        except AssertionError:
            raise AssertionError(f"not within {seconds} s; last seen: {latest}") from None
        assert batch
        return batch

    async def finished(self, batch_id: str, seconds: float = 60) -> Finished:
        """Poll until the batch has ended, and fetch its files."""
        batch = await self.until(batch_id, lambda batch: batch.status in TERMINAL, seconds)
        finished = Finished(batch)
        for file_id, kind in ((batch.output_file_id, "output"), (batch.error_file_id, "errors")):
            if file_id:
                finished.take(kind, await self.download(file_id))
        return finished

    async def run_janitor(self, *batch_ids: str) -> DeleteExpiredResult:
        """As its schedule does, once it is time to look at these batches."""
        for batch_id in batch_ids:
            self.catalog.remind("batch", "default", batch_id, int(time.time()))
        return await self.temporal.execute_workflow(
            JANITOR_WORKFLOW,
            DeleteExpiredInput(),
            id=f"janitor-{uuid.uuid4().hex}",
            task_queue=self.settings.task_queue,
            result_type=DeleteExpiredResult,
        )

    async def end_of_run(self, batch_id: str) -> tuple[str, str]:
        """How Temporal shows the end of a batch's workflow, and the reason, if it has one."""
        workflow, reason = self.workflow(batch_id), ""
        try:
            await asyncio.wait_for(workflow.result(), 60)
        except WorkflowFailureError as error:
            reason = error.cause.message if isinstance(error.cause, ApplicationError) else ""
        status = (await workflow.describe()).status
        assert status
        return status.name, reason

    async def download(self, file_id: str) -> bytes:
        return (await self.openai.files.content(file_id)).content


def progress_of(batch: Batch) -> dict[str, Any]:
    """What Everbatch says beside OpenAI's fields."""
    return (batch.model_extra or {}).get("progress") or {}
