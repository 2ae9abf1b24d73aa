"""Everbatch as real processes in a temporary folder: engine, Temporal, worker and API."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import httpx2
from openai import AsyncOpenAI
from openai.types import Batch
from temporalio.client import Client

from api.tenants.key_editing import create_key
from benchmarks.processes import ChildProcess, Usage
from tests.fakes.engine_process import EngineProcess
from tests.free_ports import free_ports

_READY_SECONDS = 300.0
_TERMINAL = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True)
class Run:
    """A batch that has completed."""

    batch_id: str
    requests: int
    seconds: float
    """From the start to the close of its workflow, by Temporal's clock: polling has no part in it."""
    seen_seconds: float
    """From create to the poll that saw it completed."""
    events: int
    history_bytes: int
    cpu: dict[str, float]
    """Seconds that each process spent meanwhile."""

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class Stack:
    """What a benchmark holds while the processes run."""

    def __init__(
        self,
        folder: Path,
        engine: EngineProcess,
        clients: dict[str, AsyncOpenAI],
        temporal: Client,
        children: list[ChildProcess],
    ) -> None:
        self.folder = folder
        self.engine = engine
        self.clients = clients
        """By tenant; ``default`` where there are none."""
        self._temporal = temporal
        self._children = children

    def usage(self) -> dict[str, Usage]:
        return {child.name: child.usage() for child in self._children}

    @property
    def client(self) -> AsyncOpenAI:
        """Of the first tenant."""
        return next(iter(self.clients.values()))

    def log(self, name: str) -> str:
        return next(child for child in self._children if child.name == name).tail(1_000_000)

    async def upload(self, path: Path, tenant: str = "default") -> str:
        return (await self.clients[tenant].files.create(file=path, purpose="batch")).id

    async def create(self, file_id: str, tenant: str = "default") -> Batch:
        return await self.clients[tenant].batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )

    async def first_answer(self, file_id: str, tenant: str, poll: float = 0.05) -> float:
        """Seconds from the create of a batch to the poll that sees its first answer."""
        start = time.perf_counter()
        batch = await self.create(file_id, tenant)
        while not (batch.request_counts and batch.request_counts.completed):
            await asyncio.sleep(poll)
            batch = await self.clients[tenant].batches.retrieve(batch.id)
        return time.perf_counter() - start

    async def ended(self, batch_id: str, poll: float = 0.25) -> Batch:
        """Poll until the batch has ended."""
        while (batch := await self.client.batches.retrieve(batch_id)).status not in _TERMINAL:
            for child in self._children:
                child.check()
            await asyncio.sleep(poll)
        return batch

    async def run(self, path: Path, poll: float = 0.25) -> Run:
        """Upload a file, run it as a batch, and hold it to all requests being completed."""
        file_id = await self.upload(path)
        return await self.run_file(file_id, poll)

    async def run_file(self, file_id: str, poll: float = 0.25) -> Run:
        before = self.usage()
        start = time.perf_counter()
        batch = await self.ended((await self.create(file_id)).id, poll)
        seen = time.perf_counter() - start
        after = self.usage()
        counts = batch.request_counts
        if batch.status != "completed" or not counts or counts.completed != counts.total:
            raise RuntimeError(f"the batch did not go well: {batch.model_dump_json()}")
        workflow = self._temporal.get_workflow_handle(batch.id)
        await workflow.result()  # the record says completed a moment before the workflow closes
        description = await workflow.describe()
        assert description.close_time
        info = description.raw_description.workflow_execution_info
        return Run(
            batch_id=batch.id,
            requests=counts.total,
            # Temporal notes the first moment of a workflow in `start_time`, before any worker has it.
            seconds=(description.close_time - description.start_time) / timedelta(seconds=1),
            seen_seconds=seen,
            events=info.history_length,
            history_bytes=info.history_size_bytes,
            cpu={name: round(after[name].cpu_seconds - before[name].cpu_seconds, 2) for name in after},
        )


@contextlib.asynccontextmanager
async def run_stack(
    *,
    max_in_flight: int | Literal["auto"] = "auto",
    latency: float = 0.0,
    lognormal: float = 0.0,
    workers: int = 1,
    tenants: Sequence[str] = (),
    variables: dict[str, str] | None = None,
    upstream_url: str = "",
) -> AsyncGenerator[Stack]:
    """Start everything, wait until batches can run, and clean up after.

    Args:
        max_in_flight: requests of each worker.
        latency: of the engine, in seconds.
        lognormal: sigma of the engine's latency.
        workers: processes.
        tenants: who each has a key; without any, nobody needs one.
        variables: further settings.
        upstream_url: of another engine than the fake one.
    """
    folder = Path(tempfile.mkdtemp(prefix="everbatch-bench-"))
    children: list[ChildProcess] = []
    try:
        async with contextlib.AsyncExitStack() as exits:
            engine = await exits.enter_async_context(EngineProcess(latency=latency, lognormal=lognormal))
            api, temporal, ui = free_ports(3)
            address = f"127.0.0.1:{temporal}"
            env = {
                "EVERBATCH_DATA_DIR": str(folder / "data"),
                "EVERBATCH_STORE": str(folder / "store"),
                "EVERBATCH_UPSTREAM_URL": upstream_url or engine.url,
                "TEMPORAL_ADDRESS": address,
                **(variables or {}),
            }

            keys = {name: create_key(folder / "keys.toml", name)[1] for name in tenants} or {"default": "none"}
            if tenants:
                env["EVERBATCH_KEYS_FILE"] = str(folder / "keys.toml")

            async def start(name: str, *arguments: str) -> None:
                child = await ChildProcess.start(name, list(arguments), env, folder / f"{name}.log")
                exits.push_async_callback(child.stop)
                children.append(child)

            data_dir = str(folder / "data")
            await start("temporal", "temporal", "--port", str(temporal), "--ui-port", str(ui), "--data-dir", data_dir)
            handle = await _connected(address, children)
            for number in range(workers):
                await start(f"worker-{number}" if number else "worker", "worker", "--max-in-flight", str(max_in_flight))
            await start("api", "serve", "--host", "127.0.0.1", "--port", str(api))
            await _ready(f"http://127.0.0.1:{api}/ready", children)
            url = f"http://127.0.0.1:{api}/v1"
            clients = {
                name: await exits.enter_async_context(
                    AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=300)
                )
                for name, key in keys.items()
            }
            yield Stack(folder, engine, clients, handle, children)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _connected(address: str, children: list[ChildProcess]) -> Client:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            return await Client.connect(address)
        except RuntimeError:
            for child in children:
                child.check()
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def _ready(url: str, children: list[ChildProcess]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    answer = "no answer"
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as http:
        while time.monotonic() < deadline:
            for child in children:
                child.check()
            try:
                response = await http.get(url)
                if response.status_code == 200:
                    return
                answer = response.text
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.1)
    tails = "\n".join(f"--- {child.name}\n{child.tail()}" for child in children)
    raise RuntimeError(f"the stack did not get ready: {answer}\n{tails}")
