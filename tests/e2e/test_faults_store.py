"""The fault matrix, part three: the store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import MakeWorld, on_s3_too
from tests.e2e.engine_log import SECOND
from tests.e2e.faults import GROUPED, SINGLE, Size
from tests.e2e.processes import now
from tests.e2e.test_faults_engine import until_reported

pytestmark = [pytest.mark.faults, pytest.mark.slow_faults]
both = pytest.mark.parametrize("size", [SINGLE, GROUPED], ids=str)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "everbatch-test", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a full disk needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def s3_folder(small_disk: Path) -> Path:
    return small_disk / "s3"


@on_s3_too
@both
async def test_the_disk_is_full(small_disk: Path, world: MakeWorld, size: Size) -> None:
    it = await world(size, folder=small_disk / "store")
    await it.submit()
    await it.until_answered(0.3)
    ballast = small_disk / "ballast"
    with it.fault("store"):
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        it.struck()
        await until_reported(it, "the store cannot be used", *([] if it.s3 else ["its disk is full"]))
        with pytest.raises(openai.InternalServerError) as caught:
            await it.client.files.create(file=("more.jsonl", b"x" * 100_000), purpose="batch")
        assert caught.value.status_code == 503
        assert float(caught.value.response.headers["retry-after"]) > 0
        received = it.log.read().count("recv")
        await asyncio.sleep(2)
        assert it.log.read().count("recv") == received  # nothing more is sent than can be stored
        ballast.unlink()
    it.lift()
    await it.end("Store", "full disk while committing", note="nothing is sent meanwhile; uploads get 503")


@both
async def test_the_input_cannot_be_read(world: MakeWorld, size: Size) -> None:
    it = await world(size)
    await it.submit()
    await it.until_answered(0.3)
    (source,) = it.store.glob("batches/*/*/input")
    with it.fault():
        away = source.rename(source.with_name("input-away"))
        source.symlink_to("/proc/self/mem")  # opens, and fails to be read with EIO
        it.struck()
        await until_reported(it, "Input/output error")
        os.replace(away, source)
    it.lift()
    await it.end("Store", "read errors (EIO) on the input")


@both
@pytest.mark.parametrize("how", ["dead", "gone"])
@pytest.mark.timeout(180)
async def test_the_store_is_away(world: MakeWorld, size: Size, how: str) -> None:
    it = await world(size)
    await it.submit()
    await it.until_answered(0.3)
    with it.fault("store"):
        away = it.store.rename(it.store.with_name("away"))
        if how == "dead":
            it.store.symlink_to(it.store)  # every call fails, as on a mount whose server has gone
        it.struck()
        await asyncio.sleep(max(0, 30 - (now() - it.since) / SECOND))
        if how == "dead":
            it.store.unlink()
        elif it.store.exists():
            shutil.rmtree(it.store)  # what was written meanwhile, a mount would hide
        away.rename(it.store)
    it.lift()
    assert it.poller.answers["503"]
    name = "away for 30 s: " + ("every call fails" if how == "dead" else "the folder is gone")
    await it.end("Store", name, seconds=90)
