"""What a page of a list costs beside many objects, against the same page beside few, in one run; and a tenant's calls
beside lists and uploads of another tenant (P12), against the same calls alone.

python -m benchmarks.lists            # 100,000 files and 10,000 batches in a folder; then 100 running batches
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from unittest.mock import patch

import click
import httpx2

from activities.records.catalog import Catalog, FileRecord
from activities.store.local import LocalStore
from benchmarks.figures import report, write_input
from benchmarks.stack import Stack, run_stack
from workflows.types import BatchSpec

PAGE = 100
ROUNDS = 20
START_MS = 1_700_000_000_000

LOOPS = 8
UPLOADS = 20
UPLOAD_BYTES = 20_000_000
TARGET_SECONDS = 0.2
START_SECONDS = 2.0
"""After which the process that asks has started."""


@click.command()
@click.option("--files", default=100_000, show_default=True, help="0 leaves the pages out.")
@click.option("--batches", default=10_000, show_default=True)
@click.option(
    "--seconds", default=10.0, show_default=True, help="Of each part beside another tenant; 0 leaves them out."
)
def main(files: int, batches: int, seconds: float) -> None:
    if files:
        pages(files, batches)
    if seconds:
        asyncio.run(beside_another_tenant(seconds))


def pages(files: int, batches: int) -> None:
    with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as many, patch("os.fsync"):
        small, large = fill(few, PAGE, PAGE), fill(many, files, batches)
        print(f"{'page of ' + str(PAGE):32}{'beside 100':>12}{'beside many':>13}{'ratio':>8}")
        for name, page in PAGES.items():
            base, taken = milliseconds(small, page), milliseconds(large, page)
            print(f"{name:32}{base:>9.1f} ms{taken:>10.1f} ms{taken / base:>8.2f}")


def fill(folder: str, files: int, batches: int) -> Catalog:
    """One file in ten is a batch's input, the others are results; two a second."""
    catalog = Catalog(LocalStore(folder))
    for number in range(files):
        purpose = "batch" if number % 10 == 0 else "batch_output"
        created_ms = START_MS + number * 500
        record = FileRecord(id=f"file-{number:024d}", bytes=1, created_ms=created_ms, filename="f", purpose=purpose)
        catalog.save_file("default", record)
    for number in range(batches):
        catalog.create_batch(
            BatchSpec(
                batch_id=f"batch_{number:032d}",
                tenant="default",
                input_file_id="file-0",
                endpoint="/v1/embeddings",
                completion_window="24h",
                window_seconds=86_400,
                created_ms=START_MS + number * 500,
                digest="",
            )
        )
    return catalog


PAGES: dict[str, Callable[[Catalog], object]] = {
    "files, newest first": lambda it: list(islice(it.list_files("default", after=None), PAGE)),
    "files, oldest first": lambda it: list(islice(it.list_files("default", after=None, ascending=True), PAGE)),
    "files of purpose batch, 10": lambda it: list(islice(it.list_files("default", after=None, purpose="batch"), 10)),
    "batches, newest first": lambda it: list(islice(it.list_batches("default", after=None), PAGE)),
    "batches, oldest first": lambda it: list(islice(it.list_batches("default", after=None, ascending=True), PAGE)),
}


def milliseconds(catalog: Catalog, page: Callable[[Catalog], object]) -> float:
    taken: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        page(catalog)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


async def beside_another_tenant(seconds: float) -> None:
    """Calls of one tenant while another with a hundred running batches lists them in loops, or uploads files."""
    async with run_stack(latency=1000.0, tenants=("greedy", "other")) as stack:
        ten = await stack.upload(write_input(stack.folder / "ten.jsonl", 10), "greedy")
        batches = [await stack.create(ten, "greedy") for _ in range(PAGE)]
        while (await stack.clients["greedy"].batches.retrieve(batches[-1].id)).status != "in_progress":  # noqa: ASYNC110 - another process has it
            await asyncio.sleep(0.2)
        one = await stack.upload(write_input(stack.folder / "one.jsonl", 1), "other")
        own = (await stack.create(one, "other")).id
        alone = await _beside(stack, own, seconds)
        for name, what, askers in (
            ("lists", f"{LOOPS} loops over a list of {PAGE} running batches", LOOPS),
            ("uploads", f"{UPLOADS} uploads at a time", UPLOADS),
        ):
            beside = await _beside(stack, own, seconds, name, askers)
            calls = ", ".join(
                f"{call} {1000 * took:.0f} ms ({1000 * alone[call]:.0f})" for call, took in beside.items()
            )
            text = f"beside {what} of another tenant, 95 of 100 calls within (alone): {calls}"
            report(
                f"P12 {name}", max(beside.values()) / TARGET_SECONDS, f"≤ 1 of {TARGET_SECONDS} s", text, alone=alone
            )


async def _beside(stack: Stack, own: str, seconds: float, kind: str = "", askers: int = 0) -> dict[str, float]:
    """Return the 95th percentile of the seconds of each call of a tenant, while another asks in loops."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        greedy = stack.clients["greedy"]
        asking = pool.submit(_ask, str(greedy.base_url), greedy.api_key, kind, askers, seconds + START_SECONDS)
        await asyncio.sleep(START_SECONDS)
        other = stack.clients["other"]
        ends, took = time.perf_counter() + seconds, dict[str, list[float]]()
        async with _http(str(other.base_url), other.api_key) as http:
            while time.perf_counter() < ends:
                for name, path in (("status", f"batches/{own}"), ("list", "batches"), ("files", "files")):
                    sent = time.perf_counter()
                    (await http.get(path)).raise_for_status()
                    took.setdefault(name, []).append(time.perf_counter() - sent)
                await asyncio.sleep(0.05)
        await asyncio.wrap_future(asking)
    return {name: statistics.quantiles(times, n=20)[-1] for name, times in took.items()}


def _ask(url: str, key: str, kind: str, askers: int, seconds: float) -> None:
    """Run in a process of its own: what it costs to ask does not delay what is measured."""

    async def loop(http: httpx2.AsyncClient, ends: float) -> None:
        while time.perf_counter() < ends:
            if kind == "lists":
                await http.get(f"batches?limit={PAGE}")
            else:
                file = {"file": ("f.jsonl", b"\n" * UPLOAD_BYTES)}
                await http.post("files", data={"purpose": "batch"}, files=file)

    async def run() -> None:
        async with _http(url, key) as http:
            await asyncio.gather(*(loop(http, time.perf_counter() + seconds) for _ in range(askers)))

    asyncio.run(run())


def _http(url: str, key: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=60)


if __name__ == "__main__":
    main()
