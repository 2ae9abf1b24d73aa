"""What a page of a list costs beside many objects, against the same page beside few, in one run.

python -m benchmarks.lists            # 100,000 files and 10,000 batches in a folder
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from unittest.mock import patch

import click

from activities.records.catalog import Catalog, FileRecord
from activities.store.local import LocalStore
from workflows.types import BatchSpec

PAGE = 100
ROUNDS = 20
START_MS = 1_700_000_000_000


@click.command()
@click.option("--files", default=100_000, show_default=True)
@click.option("--batches", default=10_000, show_default=True)
def main(files: int, batches: int) -> None:
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


if __name__ == "__main__":
    main()
