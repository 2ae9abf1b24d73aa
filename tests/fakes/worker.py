"""What an activity meets, without a socket: a store that can be made to fail and a scripted inference server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.records import keys
from activities.records.catalog import Catalog, FileRecord
from activities.store.local import LocalStore
from activities.store.object_store import ObjectStore, ObjectWriter, StoreError
from activities.temporal.batch_runs import BatchRuns
from activities.upstreams.answers import Answer, classify
from activities.upstreams.client import InferenceClient
from activities.upstreams.config import Upstream
from activities.upstreams.routes import ModelRoutes
from workflows.ids import BatchRef
from workflows.types import BatchRecord, BatchSpec

TENANT = "t"
BATCH = "batch_1"
REF = BatchRef(TENANT, BATCH)
FILE = "file-1"
CHAT = "/v1/chat/completions"
ONLY_UPSTREAM = Upstream(name="default", urls=("http://engine/v1",), is_only=True)


def make_spec(**changes: Any) -> BatchSpec:
    values: dict[str, Any] = {
        "batch_id": BATCH,
        "tenant": TENANT,
        "input_file_id": FILE,
        "endpoint": CHAT,
        "completion_window": "24h",
        "window_seconds": 86_400,
        "created_ms": 1_700_000_000_000,
        "digest": "d",
    }
    return BatchSpec(**(values | changes))


def request_line(number: int, custom_id: str | None = None, **body: Any) -> bytes:
    """A good line; its body names its number, so that the engine knows it. ``...`` leaves a member of it out."""
    request: dict[str, Any] = {
        "custom_id": custom_id or f"r{number}",
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": [{"role": "user", "content": "é"}], "n": number, **body},
    }
    request["body"] = {name: value for name, value in request["body"].items() if value is not ...}
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def routes(known_models: frozenset[str] | None = None) -> ModelRoutes:
    """Those of one upstream that lists these models; ``None`` where it cannot be asked."""
    return ModelRoutes([ONLY_UPSTREAM], [known_models])


def save_input(store: ObjectStore, content: bytes, **changes: Any) -> FileRecord:
    """An uploaded input file."""
    values: dict[str, Any] = {
        "id": FILE,
        "bytes": len(content),
        "created_ms": 1_700_000_000_000,
        "filename": "in.jsonl",
        "purpose": "batch",
    }
    record = FileRecord(**(values | changes))
    store.put(keys.content_key(TENANT, record.id), content)
    Catalog(store).save_file(TENANT, record)
    return record


def activity_environment(
    attempt: int = 1, *said: Any, temporal: Client | None = None
) -> tuple[ActivityEnvironment, list[Any]]:
    """An environment and the list that its heartbeats go to. Args: ``said`` is in those of the attempts before."""
    environment = ActivityEnvironment(temporal)
    environment.info = replace(
        ActivityEnvironment.default_info(), attempt=attempt, heartbeat_details=said, started_time=datetime.now(UTC)
    )
    beats: list[Any] = []
    environment.on_heartbeat = lambda *details: beats.append(details[0] if details else None)
    return environment, beats


async def until(condition: Callable[[], bool], what: str = "", seconds: float = 20) -> None:
    """Wait for a condition, however loaded the machine is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what threads do sets no event
                await asyncio.sleep(0.002)
    assert condition(), what or "it never came to be"


class ShakyStore(LocalStore):
    """A folder whose writes fail while ``down``; ``on_write`` runs before a write of a key, in the writer's thread."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.down = False
        self.lost = False
        """Its process is gone: what is written goes nowhere."""
        self.refused = 0
        self.written: list[str] = []
        self.on_write: Callable[[str], None] = lambda key: None

    @contextlib.contextmanager
    def writer(self, key: str) -> Generator[ObjectWriter]:
        self.on_write(key)
        if self.lost:
            key = f"lost/{key}"
        if self.down:
            self.refused += 1
            raise StoreError.at(key, "No space left on device")
        with super().writer(key) as writer:
            yield writer
        self.written.append(key)


@dataclass
class FakeRuns:
    """Temporal's side of batches: which of them have an open run, and what was asked for."""

    open: set[str] = field(default_factory=set[str])
    specs: dict[str, BatchSpec] = field(default_factory=dict[str, BatchSpec])
    down: bool = False
    webhooks: list[str] = field(default_factory=list[str])
    """Events that are sent."""
    cancelled: list[str] = field(default_factory=list[str])
    started: list[str] = field(default_factory=list[str])
    """Batches that got another run, to be closed."""

    @property
    def runs(self) -> BatchRuns:
        return cast(BatchRuns, self)

    async def start_webhooks(self, ended: BatchRecord) -> None:
        self.webhooks.append(f"{ended.spec.batch_id} {ended.status.phase}")

    async def cancel(self, batch_id: str, run_id: str | None = None) -> bool:
        self.cancelled.append(batch_id)
        return True

    async def is_open(self, batch_id: str) -> bool:
        if self.down:
            raise RuntimeError("Temporal does not answer")
        return batch_id in self.open

    async def spec(self, batch_id: str) -> BatchSpec | None:
        return self.specs.get(batch_id)

    async def start_cancelled(self, spec: BatchSpec) -> None:
        self.started.append(spec.batch_id)
        self.open.add(spec.batch_id)


def reply(status: int = 200, body: Any = None, **headers: str) -> Answer:
    """What the real client makes of such an HTTP answer."""
    data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
    return classify(status, {name.replace("_", "-"): value for name, value in headers.items()}, data, now=0.0)


def completion(number: int) -> Answer:
    return reply(body={"n": number, "usage": {"prompt_tokens": number, "completion_tokens": 1}})


def refusal(status: int, message: str = "no", **headers: str) -> Answer:
    return reply(status, {"error": {"message": message, "type": "t", "param": None, "code": None}}, **headers)


@dataclass
class FakeEngine:
    """Answers by script, request by request; what has no script succeeds."""

    models: frozenset[str] | None = None
    script: dict[int, list[Answer | Exception]] = field(default_factory=dict[int, "list[Answer | Exception]"])
    held: set[int] = field(default_factory=set[int])
    """Requests that get no answer until :meth:`release`."""
    sent: list[int] = field(default_factory=list[int])
    replicas: list[int] = field(default_factory=list[int])
    """Where each was sent."""
    cancelled: list[int] = field(default_factory=list[int])
    in_flight: int = 0
    most_in_flight: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    upstream: Upstream = ONLY_UPSTREAM
    up: bool = True
    """Whether it answers a question about itself."""

    @property
    def client(self) -> InferenceClient:
        return cast(InferenceClient, self)

    def fail(self, numbers: Iterable[int], *answers: Answer | Exception) -> None:
        for number in numbers:
            self.script[number] = list(answers)

    def release(self) -> None:
        self.held.clear()
        self._released.set()

    async def is_up(self, replica: int = 0) -> bool:
        return self.up

    async def list_models(self) -> frozenset[str] | None:
        return self.models

    async def send(self, endpoint: str, body: bytes, replica: int = 0) -> Answer:
        number: int = json.loads(body)["n"]
        self.sent.append(number)
        self.replicas.append(replica)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            if number in self.held:
                await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.in_flight -= 1
        script = self.script.get(number)
        answer = script.pop(0) if script else completion(number)
        if isinstance(answer, Exception):
            raise answer
        return answer
