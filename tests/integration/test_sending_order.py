"""Requests that begin alike are sent one after the other; whatever happens meanwhile, results come in input order."""

from __future__ import annotations

import uuid
from itertools import pairwise
from typing import Any

import pytest

from tests.integration.conftest import MakeStack
from tests.integration.stack import Finished, Stack, request, requests
from tests.integration.test_resets import place_of_store as place_of_store
from tests.integration.test_resets import reset, reset_points
from tests.integration.test_results_feed import Reader
from tests.integration.test_retries import retried

PREFIXES = 7
COUNT = 210


def prompts(count: int = COUNT, hanging: int = 0) -> list[dict[str, Any]]:
    """Requests that take turns between long prefixes. Those whose number ``hanging`` divides say so."""
    lines: list[dict[str, Any]] = []
    for n in range(count):
        name = f"{'hangs' if hanging and n % hanging == 0 else 'ok'}-{n}"
        messages = [{"role": "system", "content": f"prefix {n % PREFIXES} " * 200}, {"role": "user", "content": name}]
        lines.append(request(name, messages=messages))
    return lines


def names(lines: list[dict[str, Any]], only: str = "") -> list[str]:
    return [line["custom_id"] for line in lines if line["custom_id"].startswith(only)]


def number(name: str) -> int:
    return int(name.rpartition("-")[2])


async def reset_while_some_hang(it: Stack, lines: list[dict[str, Any]]) -> str:
    """Run a batch until only those that hang are left, stop its worker, and reset it to its first task."""
    it.script(mode="hang", match="hangs")
    batch_id = await it.submit(lines)
    await until_the_others_are_done(it, batch_id, lines)
    await it.stop_worker()
    await reset(it, batch_id, (await reset_points(it, batch_id))[0])
    return batch_id


async def until_the_others_are_done(it: Stack, batch_id: str, lines: list[dict[str, Any]]) -> None:
    done = len(names(lines, "ok"))
    await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed == done)


@pytest.mark.parametrize("place_of_store", ["folder", "s3"], indirect=True)
async def test_prompts_with_one_prefix_follow_on_each_other(stack: MakeStack, place_of_store: dict[str, Any]) -> None:
    it = await stack(max_in_flight=1, **place_of_store)
    lines = prompts()
    finished = await it.run(lines)
    assert (finished.batch.status, finished.counts) == ("completed", (COUNT, COUNT, 0))
    assert finished.answered == names(lines)
    received = it.engine.counters().received
    assert received == dict.fromkeys(names(lines), 1)
    changes = sum(number(one) % PREFIXES != number(other) % PREFIXES for one, other in pairwise(received))
    # A few shards are at work at a time, so some prefixes take turns; in input order every next one is another.
    assert changes < COUNT // 2


async def test_the_order_may_be_that_of_the_input(stack: MakeStack) -> None:
    it = await stack(max_in_flight=1, order="input")
    lines = prompts()
    assert (await it.run(lines)).answered == names(lines)
    received = [number(name) for name in it.engine.counters().received]
    assert sum(one + 1 != other for one, other in pairwise(received)) < COUNT // 2  # but for shards that run together


@pytest.mark.parametrize("place_of_store", ["folder", "s3"], indirect=True)
async def test_a_cancelled_batch_has_a_line_for_each_request(stack: MakeStack, place_of_store: dict[str, Any]) -> None:
    it = await stack(**place_of_store)
    it.script(mode="hang", match="hangs")
    lines = prompts(hanging=4)
    batch_id = await it.submit(lines)
    await until_the_others_are_done(it, batch_id, lines)
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.answered) == ("cancelled", names(lines, "ok"))
    assert finished.refused == names(lines, "hangs")
    assert {line["error"]["code"] for line in finished.errors} == {"batch_cancelled"}


@pytest.mark.parametrize("after", ["prefix", "input"])
async def test_a_batch_that_runs_is_reset_and_then_has_the_same_order_or_another(stack: MakeStack, after: str) -> None:
    old = await stack(order="prefix")
    lines = prompts(hanging=4)
    batch_id = await reset_while_some_hang(old, lines)
    it = await stack(order=after, store=old.settings.store, task_queue=old.settings.task_queue)
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.counts) == ("completed", (COUNT, COUNT, 0))
    assert finished.answered == names(lines)
    assert it.engine.counters().received == dict.fromkeys(names(lines, "hangs"), 1)


async def test_a_batch_is_reset_to_another_order_and_cancelled(stack: MakeStack) -> None:
    old = await stack(order="input")
    lines = prompts(hanging=4)
    batch_id = await reset_while_some_hang(old, lines)
    it = await stack(worker=False, order="prefix", store=old.settings.store, task_queue=old.settings.task_queue)
    it.script(mode="hang", match="hangs")
    await it.start_worker()
    await it.until(batch_id, lambda _: it.engine.counters().in_flight > 0)
    await it.openai.batches.cancel(batch_id)
    finished = await it.finished(batch_id)
    assert (finished.batch.status, finished.answered) == ("cancelled", names(lines, "ok"))
    assert finished.refused == names(lines, "hangs")


async def test_a_worker_that_is_stopped_leaves_the_rest_to_the_next(stack: MakeStack) -> None:
    it = await stack(latency=0.05, max_in_flight=8)
    lines = prompts()
    batch_id = await it.submit(lines)
    await it.until(batch_id, lambda batch: batch.request_counts and (batch.request_counts.completed or 0) > COUNT // 4)
    await it.stop_worker()
    await it.start_worker()
    finished = await it.finished(batch_id)
    assert (finished.answered, finished.counts) == (names(lines), (COUNT, COUNT, 0))
    assert it.engine.counters().received == dict.fromkeys(names(lines), 1)


async def test_failed_requests_are_retried_by_prefix(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="status", status=400, match="hangs")
    lines = prompts(hanging=2)
    first: Finished = await it.run(lines)
    assert first.refused == names(lines, "hangs")
    it.script(mode="status", status=400, match="hangs-0")
    second = await retried(it, first.batch.id)
    assert second.answered == [name for name in names(lines) if name != "hangs-0"]
    assert second.refused == ["hangs-0"]
    again = [number(name) for name, times in it.engine.counters().received.items() if times > 1]
    assert sorted(again) == [number(name) for name in names(lines, "hangs")]


async def test_what_is_shown_of_a_running_batch_is_each_line_once(stack: MakeStack) -> None:
    it = await stack()
    it.script(mode="hang", match="hangs")
    lines = prompts(hanging=4)
    batch_id = await it.submit(lines)
    await until_the_others_are_done(it, batch_id, lines)
    reader = Reader(it, batch_id)
    while await reader.read():
        pass
    assert sorted(reader.names, key=number) == names(lines, "ok")
    await it.openai.batches.cancel(batch_id)
    await it.finished(batch_id)
    while await reader.read():
        pass
    assert (reader.is_over, reader.names[-len(names(lines, "hangs")) :]) == (True, names(lines, "hangs"))
    assert sorted(reader.names, key=number) == names(lines)


@pytest.mark.parametrize("order", ["auto", "prefix"])
async def test_a_few_requests_are_sent_by_prefix_only_if_that_is_wanted(stack: MakeStack, order: str) -> None:
    it = await stack(order=order, max_in_flight=1)
    lines = [*prompts(40), *requests(3, prefix=f"other-{uuid.uuid4().hex}")]
    assert (await it.run(lines)).answered == names(lines)
    received = [number(name) for name in it.engine.counters().received if name.startswith("ok")]
    changes = sum(one % PREFIXES != other % PREFIXES for one, other in pairwise(received))
    assert changes < 20 if order == "prefix" else changes > 30
