"""The harness of the fault matrix: processes of their own, a batch under way, a fault, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from openai import AsyncOpenAI
from openai.types import Batch

from activities.settings import Settings
from api.client import TERMINAL
from tests.e2e.engine_log import SECOND, EngineLog
from tests.e2e.faults_table import Matrix, Row
from tests.e2e.poller import Poller
from tests.e2e.processes import TEMPORAL_LINE, Child, Launcher, api_port, gone, now, openai_of
from tests.fakes.engine_answers import Answers
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import CHAT, Finished, jsonl, requests, until
from tests.s3_server import BUCKET, S3Server

COMMIT_INTERVAL: Final = 0.1
"""Seconds before a fault in which an answer may not be committed yet."""
COMMIT_SECONDS: Final = 0.1
"""Beyond that, for the commit itself, on a machine that has two cores for all of this."""
HEARTBEAT_TIMEOUT: Final[float] = Settings.model_fields["heartbeat_timeout"].default
"""What everybody has: rows measured at a shorter one would say little."""
S3_PREFIX: Final = "store"


@dataclass(frozen=True)
class Size:
    """A batch as all rows of the matrix know it."""

    name: str
    count: int
    latency: float
    in_flight: int
    prefixes: int = 0
    """Of its prompts, by which they are then sent; 0 for short prompts in input order."""

    @property
    def rate(self) -> float:
        """Answers a second, of an engine that is always busy."""
        return self.in_flight / self.latency

    def __str__(self) -> str:
        return self.name


SINGLE: Final = Size("single", 50, 1.2, 16)
GROUPED: Final = Size("grouped", 5000, 0.1, 64)
BY_PREFIX: Final = Size("by prefix", 5000, 0.1, 64, prefixes=60)


def requests_of(size: Size) -> list[dict[str, Any]]:
    lines = requests(size.count)
    for number, line in enumerate(lines if size.prefixes else ()):
        line["body"]["messages"].insert(0, {"role": "system", "content": f"prefix {number % size.prefixes} " * 100})
    return lines


def undisturbed(names: Iterable[str], answer_bytes: int) -> dict[str, object]:
    """Id and answer of each request in a run in which nothing happens; the engine says the same each time."""
    answers = Answers("fake", answer_bytes)
    return {
        name: json.loads(answers.success(CHAT.encode(), name.encode(), 0).partition(b"\r\n\r\n")[2]) for name in names
    }


def errors_of(result: Finished) -> dict[str, str]:
    """The code of each error line."""
    return {
        line["custom_id"]: line["error"]["code"] if line["error"] else str(line["response"]["status_code"])
        for line in result.errors
    }


class World:
    """Everything that runs, and the one batch that it runs for."""

    def __init__(
        self,
        launcher: Launcher,
        engine: EngineProcess,
        log: EngineLog,
        size: Size,
        matrix: Matrix,
        answer_bytes: int,
        s3: S3Server | None = None,
    ) -> None:
        self.launcher = launcher
        self.s3 = s3
        self._answer_bytes = answer_bytes
        self.engine = engine
        self.log = log
        self.size = size
        self.matrix = matrix
        self._exits = contextlib.AsyncExitStack()
        self._closing: list[AsyncOpenAI] = []
        self._temporal: Child | None = None
        self._temporal_port = ""
        self.lines: list[dict[str, Any]] = []
        self.batch_id = ""
        self.started = self.since = self.until = self.lifted = 0

    # Processes

    @property
    def store(self) -> Path:
        """The folder of the store's objects, also of one on S3."""
        return self.s3.root / BUCKET / S3_PREFIX if self.s3 else Path(self.launcher.env["EVERBATCH_STORE"])

    async def start_api(self) -> None:
        self.api, self.client = await self.launcher.serve()
        self._closing.append(self.client)
        if self.batch_id:
            self.poller.api_is_new = True
            self.poller.root = str(self.client.base_url).rstrip("/")

    async def start_held_api(self, mark: Path) -> tuple[Child, AsyncOpenAI]:
        """An API that stops in the middle of a create, see :mod:`tests.e2e.held_api`."""
        env = {"FAULTS_HELD": str(mark)}
        child = await self.launcher.start("serve", "--port", "0", env=env, module="tests.e2e.held_api")
        client = openai_of(await api_port(child))
        self._closing.append(client)
        return child, client

    async def start_worker(self, in_flight: int = 0, **env: str) -> Child:
        self.worker = await self.launcher.worker("--max-in-flight", str(in_flight or self.size.in_flight), **env)
        return self.worker

    async def start_temporal(self) -> None:
        """On the port that it had before, if it had one."""
        port = self._temporal_port or "0"
        self._temporal = await self.launcher.start("temporal", "--port", port, "--ui-port", "0")
        address = (await self._temporal.said(TEMPORAL_LINE))[1]
        self._temporal_port = address.rpartition(":")[2]
        self.launcher.env["TEMPORAL_ADDRESS"] = address

    async def kill_temporal(self) -> None:
        assert self._temporal
        family = self._temporal.family()
        for one in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        await self._temporal.kill()
        await gone(family)

    async def close(self) -> None:
        await self._exits.aclose()
        for client in self._closing:
            await client.close()

    # The batch

    async def upload(self, lines: list[dict[str, Any]] | None = None) -> str:
        self.lines = requests_of(self.size) if lines is None else lines
        return (await self.client.files.create(file=("in.jsonl", jsonl(self.lines)), purpose="batch")).id

    async def submit(self, lines: list[dict[str, Any]] | None = None, window: Any = "24h", key: str = "") -> None:
        await self.watch(await self.create(await self.upload(lines), window, key))

    async def create(self, file_id: str, window: Any = "24h", key: str = "", client: AsyncOpenAI | None = None) -> str:
        headers = {"Idempotency-Key": key} if key else None
        batch = await (client or self.client).batches.create(
            input_file_id=file_id, endpoint=CHAT, completion_window=window, extra_headers=headers
        )
        return batch.id

    async def watch(self, batch_id: str) -> None:
        """From now on somebody asks for this batch all the time."""
        self.started = now()
        self.batch_id = batch_id
        self.poller = Poller(str(self.client.base_url).rstrip("/"), batch_id)
        await self._exits.enter_async_context(self.poller.running())

    async def until_answered(self, fraction: float) -> None:
        """By the engine's log, not by what the API says."""

        async def look() -> bool:
            return len(self.log.read().answered) >= fraction * len(self.lines)

        await until(look, f"{fraction} of the answers", 60)

    async def until_ended(self, seconds: float) -> None:
        async def look() -> bool:
            return self.poller.latest.get("status") in TERMINAL

        try:
            await until(look, self.batch_id, seconds)
        except AssertionError:
            self.log.read()
            raise AssertionError(
                f"not ended within {seconds} s: {len(self.log.answered)} answered, last seen {self.poller.latest}"
            ) from None

    # The fault

    @contextlib.contextmanager
    def fault(self, down: str = "") -> Generator[None]:
        """Around what does the harm; ``down`` is a part that is away meanwhile."""
        self.since = now()
        with self.poller.while_down(down) if down else contextlib.nullcontext():
            yield
        self.until = self.until or now()

    def struck(self) -> None:
        """The harm is done, if that is before the fault is over."""
        self.until = now()

    def lift(self) -> None:
        """From here on it can go on."""
        self.lifted = now()

    def at_risk(self, before: float = COMMIT_INTERVAL + COMMIT_SECONDS) -> set[str]:
        """What may be sent again: in flight at the fault, or answered up to so many seconds before it."""
        return self.log.read().unanswered(self.since - before * SECOND, self.until)

    # The end

    async def end(
        self,
        group: str,
        fault: str,
        *,
        allowed: Iterable[str] | Counter[str] = (),
        status: str = "completed",
        errors: dict[str, str] | None = None,
        seconds: float = 60,
        note: str = "",
    ) -> Finished:
        """Wait for the end, hold it against an undisturbed run, and write the row.

        Args:
            group: heading in the table.
            fault: the row's name.
            allowed: requests that may have been sent again, each once or as often as counted; by default none.
            status: how the batch is to end.
            errors: code of each request that is to be an error line.
            seconds: at most until the end.
            note: for the table.
        """
        await self.until_ended(seconds)
        took = (now() - self.started) / SECOND
        result = await self.finished()
        await self.check_result(result, status, errors or {})
        assert self.poller.wrong == []
        assert self.poller.answers["200"]
        again = self.log.read().sent_again()
        worst = Counter(allowed)
        beyond = (again - worst).most_common()
        assert not beyond, f"{len(beyond)} beyond the {worst.total()} that may be sent twice, such as {beyond[:5]}"
        back = self.log.next_new_answer(self.lifted) if self.lifted else None
        self.matrix.add(
            Row(
                group=group,
                fault=fault + (", by prefix" if self.size.prefixes else "") + (", on S3" if self.s3 else ""),
                requests=len(self.lines),
                lost=0,  # asserted above
                duplicates=again.total(),
                allowed=len(set(worst) & self.at_risk(COMMIT_INTERVAL)) if self.since else worst.total(),
                back=back,
                took=took,
                note=note,
            )
        )
        return result

    async def finished(self) -> Finished:
        """The batch and its files."""
        batch: Batch = await self.client.batches.retrieve(self.batch_id)
        result = Finished(batch)
        for file_id, kind in ((batch.output_file_id, "output"), (batch.error_file_id, "errors")):
            if file_id:
                result.take(kind, (await self.client.files.content(file_id)).content)
        return result

    async def check_result(self, result: Finished, status: str, errors: dict[str, str]) -> None:
        """Each request is answered once: as in an undisturbed run, or by the error line that is expected."""
        names = [line["custom_id"] for line in self.lines]
        answered = [name for name in names if name not in errors]
        assert result.batch.status == status
        assert [line["custom_id"] for line in result.output] == answered
        assert {line["custom_id"]: line["response"]["body"] for line in result.output} == undisturbed(
            answered, self._answer_bytes
        )
        assert [line["custom_id"] for line in result.errors] == [name for name in names if name in errors]
        assert errors_of(result) == errors
        assert result.counts == (len(names), len(answered), len(errors))


async def signalled(child: Child, number: signal.Signals, seconds: float = 20) -> float:
    """Send a signal and wait for the end of the process; the seconds that it took."""
    before = time.monotonic()
    child.send(number)
    assert await child.wait(seconds) == 0
    child.check_clean_exit()
    return time.monotonic() - before


@contextlib.asynccontextmanager
async def make_world(
    launcher: Launcher,
    log_folder: Path,
    matrix: Matrix,
    size: Size,
    *,
    own_temporal: bool = False,
    workers: int = 1,
    engine: dict[str, Any] | None = None,
    engine_runs: bool = True,
    s3: S3Server | None = None,
    folder: Path | None = None,
    **settings: str,
) -> AsyncGenerator[World]:
    """Args: ``s3`` is where the store is, or else ``folder``; ``settings`` are Everbatch's, in lower case."""
    log = log_folder / "engine.log"
    options: dict[str, Any] = {"latency": size.latency, "answer_bytes": 400, "log": log, **(engine or {})}
    fake = EngineProcess(**options)
    world = World(launcher, fake, EngineLog(log), size, matrix, options["answer_bytes"], s3)
    try:
        if own_temporal:
            await world.start_temporal()
        await fake.start()
        if not engine_runs:
            await fake.stop()
        launcher.env |= {
            "EVERBATCH_UPSTREAM_URL": fake.url,
            "EVERBATCH_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
            "EVERBATCH_COMMIT_INTERVAL": str(COMMIT_INTERVAL),
            "EVERBATCH_DRAIN_TIMEOUT": "5",
            "EVERBATCH_COMPLETION_WINDOWS": "5s,24h",
            **({"EVERBATCH_STORE": str(folder)} if folder else {}),
            **({"EVERBATCH_STORE": f"s3://{BUCKET}/{S3_PREFIX}", **s3.variables} if s3 else {}),
            **{f"EVERBATCH_{name.upper()}": value for name, value in settings.items()},
        }
        starts = [world.start_api(), *(world.start_worker() for _ in range(workers))]
        await asyncio.gather(*starts)
        yield world
    finally:
        await world.close()
        await fake.stop()
