"""A client that asks for a batch all the time, and notes every answer that it should not have got."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from typing import Any, Final

import aiohttp

PAUSE: Final = 0.1
_ORDER: Final = ("validating", "in_progress", "finalizing", "cancelling")


class Poller:
    """``GET`` of one batch and of the list, in turn. After a fault set ``root`` to where the API is now."""

    def __init__(self, root: str, batch_id: str) -> None:
        self.root = root
        self.batch_id = batch_id
        self.latest: dict[str, Any] = {}
        self.answers: Counter[str] = Counter()
        """Of each kind: a status, or ``lost`` where there was none."""
        self.wrong: list[str] = []
        self.api_is_new = False
        """Set when the API was started again: what it had seen of running shards it knows no more, and while it cannot
        ask it tells what it finds written down. Then ``as_of`` says that this is older than what was shown before."""
        self._down: Counter[str] = Counter()
        self._highest: dict[str, Any] = {"done": (0, 0, 0), "status": 0, "as_of": 0}

    @contextlib.contextmanager
    def while_down(self, part: str) -> Generator[None]:
        """Around the time in which a part is away: for ``api`` connections may fail, for another part 503 is right."""
        self._down[part] += 1
        try:
            yield
        finally:
            self._down[part] -= 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (error := task.exception()):
            raise error

    @property
    def done(self) -> int:
        completed, failed, _ = _counts(self.latest)
        return completed + failed

    @property
    def progress(self) -> dict[str, Any]:
        return self.latest.get("progress") or {}

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            while True:
                for path in (f"/batches/{self.batch_id}", "/batches"):
                    await self._ask(session, path)
                    await asyncio.sleep(PAUSE)

    async def _ask(self, session: aiohttp.ClientSession, path: str) -> None:
        excuses = set(+self._down)
        root = self.root
        try:
            async with session.get(root + path) as response:
                status, retry_after = response.status, response.headers.get("Retry-After")
                body: dict[str, Any] = await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.answers["lost"] += 1
            if "api" not in excuses | set(+self._down) and root == self.root:
                self.wrong.append(f"{path}: {error!r}")
            return
        self.answers[str(status)] += 1
        excuses |= set(+self._down)
        if status == 200:
            self._check(path, body)
        elif status != 503 or not excuses - {"api"}:
            self.wrong.append(f"{path}: {status} {body}")
        elif not (retry_after and float(retry_after) > 0):
            self.wrong.append(f"{path}: 503 without Retry-After")

    def _check(self, path: str, body: dict[str, Any]) -> None:
        batch = body
        if body.get("object") == "list":
            found = [item for item in body["data"] if item["id"] == self.batch_id]
            if len(found) != 1:
                self.wrong.append(f"{path}: the batch is listed {len(found)} times")
                return
            (batch,) = found
        self.latest = batch
        counts = _counts(batch)
        before = self._highest["done"]
        as_of = (self.progress.get("as_of") or 0) if self.progress else math.inf  # one that has ended is known for good
        if self.api_is_new and as_of <= self._highest["as_of"]:
            return
        if any(now < then for now, then in zip(counts, before, strict=True)):
            self.wrong.append(f"{path}: completed, failed and total went from {before} to {counts}")
        rank = _ORDER.index(batch["status"]) if batch["status"] in _ORDER else len(_ORDER)
        if rank < self._highest["status"]:
            self.wrong.append(f"{path}: back to {batch['status']}")
        self._highest = {
            "done": tuple(map(max, counts, before)),
            "status": max(rank, self._highest["status"]),
            "as_of": max(as_of, self._highest["as_of"]),
        }


def _counts(batch: dict[str, Any]) -> tuple[int, int, int]:
    counts = batch.get("request_counts") or {"completed": 0, "failed": 0, "total": 0}
    return counts["completed"], counts["failed"], counts["total"]
