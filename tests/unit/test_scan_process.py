"""Large inputs are checked in a process of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from activities.heartbeats import StoppedError
from activities.input.scan import scan_input
from activities.input.scan_process import ScanProcess, ScanProcessEndedError, ScanProcesses
from activities.store.local import LocalStore
from activities.upstreams.config import Upstream
from activities.upstreams.errors import UpstreamUnavailableError
from activities.upstreams.routes import ModelRoutes
from activities.validate_input import SMALL_INPUT_BYTES, ValidateInput
from tests.fakes.worker import FakeEngine, activity_environment, make_spec, request_line, routes, save_input


@pytest.fixture(scope="module")
def process() -> Generator[ScanProcess]:
    process = ScanProcess()
    yield process
    process.close()


def lines(count: int) -> bytes:
    return b"".join(request_line(number) for number in range(count))


def test_it_finds_what_is_found_here(process: ScanProcess) -> None:
    good = lines(2000)
    bad = good + b"not JSON\n" + request_line(1)
    for content in (good, bad, b"", b"\n"):
        chunks = [content[start : start + 70_000] for start in range(0, len(content), 70_000)]
        found, expected = process.scan(iter(chunks), make_spec(), routes()), scan_input(chunks, make_spec(), routes())
        assert (found.cut, found.order) == (expected.cut, expected.order)
        assert found.result.model_copy(update={"finished_at": 0}) == expected.result.model_copy(
            update={"finished_at": 0}
        )


def test_an_input_that_ends_early_for_it_is_read_to_its_end(process: ScanProcess) -> None:
    chunks = [lines(1000)] * 20
    assert process.scan(chunks, make_spec(max_requests=3), routes()).result.errors[0].code == "too_many_tasks"
    assert process.scan([lines(3)], make_spec(), routes()).result.total == 3


def test_its_errors_are_raised_here(process: ScanProcess) -> None:
    two = [Upstream(name=name, urls=(f"http://{name}/v1",)) for name in ("a", "b")]
    with pytest.raises(UpstreamUnavailableError, match=r'upstream "a" .* or upstream "b"'):
        process.scan([lines(1)], make_spec(), ModelRoutes(two, [None, None]))


def test_a_cancelled_input_leaves_nothing_for_the_next(process: ScanProcess) -> None:
    def cancelled() -> Iterator[bytes]:
        yield lines(10)
        raise StoppedError

    with pytest.raises(StoppedError):
        process.scan(cancelled(), make_spec(), routes())
    assert process.scan([lines(3)], make_spec(), routes()).result.total == 3


def test_one_that_is_killed_is_replaced(process: ScanProcess) -> None:
    def killed() -> Iterator[bytes]:
        yield lines(10)
        os.kill(process.pid, signal.SIGKILL)
        while True:
            yield lines(1000)

    with pytest.raises(ScanProcessEndedError):
        process.scan(killed(), make_spec(), routes())
    assert process.scan([lines(3)], make_spec(), routes()).result.total == 3


async def test_an_activity_gives_it_large_inputs_alone(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    processes = ScanProcesses(1)
    activity = ValidateInput(store, [FakeEngine().client], processes)
    environment, _ = activity_environment()
    async with processes.one() as process:
        pass
    save_input(store, lines(3), id="file-small")
    small = make_spec(batch_id="batch_2", input_file_id="file-small")
    assert (await environment.run(activity.validate_input, small)).total == 3
    assert process.pid == 0
    count = SMALL_INPUT_BYTES // 100
    save_input(store, lines(count))
    assert (await environment.run(activity.validate_input, make_spec())).total == count
    assert process.pid != 0
    processes.close()
    assert process.pid == 0
