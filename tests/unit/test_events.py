"""Waits that are the same become one, and nothing of the life of a batch grows without a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from activities.records.catalog import Catalog
from activities.records.cuts import Cut
from activities.records.shard_keys import ShardRef
from activities.results.other_cuts import OtherCuts
from activities.results.records import RecordReader
from activities.results.shard_log import Committed, ShardLog, look_up
from activities.results.shard_waits import ShardWaits, encode_waits, newest
from api.gateway.interface import BatchView
from api.routes.events import events_of
from tests.fakes.api import open_api
from tests.fakes.worker import REF, ShakyStore, make_spec
from workflows.error_summary import ErrorCount
from workflows.events import (
    MAX_EVENTS,
    MAX_REASON,
    MAX_WAITS,
    ByTenant,
    EventType,
    History,
    NotedEvent,
    PastWait,
    merge_waits,
    who,
)
from workflows.types import BatchError, BatchPhase, BatchRecord, BatchStatus, Counts, Shard
from workflows.waits import Wait, WaitKind, store_wait

NOW = 1_800_000_000


def away(reason: str = "is away", subject: str = "gpu") -> Wait:
    return Wait(kind=WaitKind.UPSTREAM, subject=subject, reason=reason)


def past(began: int, ended: int | None, reason: str = "is away", subject: str = "gpu") -> PastWait:
    return PastWait.of(away(reason, subject), NOW + began, None if ended is None else NOW + ended)


def spans(waits: list[PastWait]) -> list[tuple[int, int | None, int]]:
    return [(wait.began - NOW, None if wait.ended is None else wait.ended - NOW, wait.times) for wait in waits]


def test_the_waits_of_many_shards_for_one_outage_are_one() -> None:
    waits, dropped = merge_waits([past(2, 90), past(0, 80), past(5, 95), past(3, 4, subject="other")], 9)
    assert (spans(waits), dropped) == ([(0, 95, 1), (3, 4, 1)], 0)


def test_short_waits_soon_after_each_other_are_one_that_came_several_times() -> None:
    waits, _ = merge_waits([past(0, 10), past(20, 30), past(85, None), past(300, 301, subject="other")], 9)
    assert spans(waits) == [(0, None, 3), (300, 301, 1)]
    waits, _ = merge_waits([past(0, 10), past(80, 90)], 9)
    assert spans(waits) == [(0, 10, 1), (80, 90, 1)]


def test_of_too_many_the_shortest_are_dropped_and_counted() -> None:
    history = History().with_waits(past(1000 * n, 1000 * n + 1 + n) for n in range(MAX_WAITS))
    history = history.with_waits([past(-1000, None, subject="store")]).with_waits(
        [past(-3000, -2000), past(-500, -499)]
    )
    assert (len(history.waits), history.dropped) == (MAX_WAITS, 3)
    assert spans(history.waits)[:2] == [(-3000, -2000, 1), (-1000, None, 1)]


def test_of_too_many_events_the_first_and_the_last_stay() -> None:
    history = History()
    for number in range(MAX_EVENTS + 5):
        history = history.with_event(NotedEvent(at=NOW, type=EventType.PAUSED, message=str(number)))
    assert (len(history.events), history.dropped) == (MAX_EVENTS, 5)
    assert [history.events[place].message for place in (0, 1, -1)] == ["0", "6", str(MAX_EVENTS + 4)]


def test_a_wait_keeps_its_begin_and_its_latest_numbers_until_an_answer_comes() -> None:
    now = [float(NOW)]
    waits = ShardWaits(lambda: now[0])
    waits.begin(away("has answered none for 10 s"))
    waits.has_changed = False
    now[0] += 7
    waits.begin(away("has answered none for 17 s"))
    assert not waits.has_changed  # nothing that would have to be stored
    waits.end()
    waits.end()
    assert [(wait.reason, *span) for wait, span in zip(waits.past, spans(waits.past), strict=True)] == [
        ("has answered none for 17 s", 0, 7, 1)
    ]


def test_a_wait_that_returns_is_open_until_it_ends() -> None:
    now = [float(NOW)]
    waits = ShardWaits(lambda: now[0])
    for subject in ("gpu", "store", "gpu"):
        waits.begin(away(subject=subject))
        now[0] += 5
    waits.begin(away("is still away"))
    assert spans(waits.past) == [(0, None, 2), (5, 10, 1)]
    waits.end()
    assert spans(waits.past) == [(0, 15, 2), (5, 10, 1)]


def test_an_answer_does_not_end_the_wait_for_the_store() -> None:
    waits = ShardWaits(lambda: NOW)
    waits.begin(store_wait("its disk is full", is_lasting=True))
    waits.has_changed = False
    waits.end(WaitKind.UPSTREAM, WaitKind.MODEL)
    assert (spans(waits.past), waits.has_changed) == ([(0, None, 1)], False)


@pytest.mark.parametrize("of_objects", [([past(0, 9)], [past(0, None)]), ([past(0, None)], [past(0, 9)])])
def test_a_wait_that_one_part_reports_as_ended_has_ended(of_objects: tuple[list[PastWait], ...]) -> None:
    found = Committed({}, {}, {}, [], {}, [])
    for waits in of_objects:
        found.take("part", RecordReader(iter([encode_waits(waits)])))
    assert spans(found.waits) == [(0, 9, 1)]


def test_a_wait_that_came_again_is_as_it_was_reported_last() -> None:
    first, again = past(0, 9), past(0, 9).merged(past(20, None))
    assert newest([again, first]) == newest([first, again]) == [again]


async def test_the_waits_of_a_finished_shard_are_found_where_its_end_was_not_reported(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    shard = ShardRef(REF, "c1", 0)
    killed = ShardLog(store, shard, "000001-a")
    killed.waits.begin(away())
    killed.add(1, "output", b"{}\n")
    result = await killed.finish()
    assert [wait.subject for wait in result.waits if wait.ended] == ["gpu"]
    assert await ShardLog(store, shard, "000002-a").load() == result


async def test_the_waits_of_another_cut_are_carried_over(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    shard = Shard(0, 10, 1, 2)
    cuts = [Cut("input", lines, [shard], ["default"]) for lines in ("first", "second")]
    for cut in cuts:
        Catalog(store).save_cut(REF, cut)
    first, second = (ShardLog(store, ShardRef(REF, cut.digest, 0), "000001-a") for cut in cuts)
    first.waits.begin(away())
    await first.commit()
    await OtherCuts().carry_over(store, "run", ShardRef(REF, cuts[1].digest, 0), second, {1, 2})
    assert second.waits.past == first.waits.past


async def test_the_next_attempt_takes_the_waits_up_and_the_batch_has_them_at_its_end(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    shard = ShardRef(REF, "c1", 0)
    first = ShardLog(store, shard, "000001-a")
    first.waits.begin(away())
    await first.commit()
    second = ShardLog(store, shard, "000002-a")
    await second.load()
    assert second.waits.past == first.waits.past
    await second.commit()
    assert len(store.written) == 1  # an outage costs one object for each shard, not one for each attempt
    second.waits.begin(away())
    second.waits.end()
    second.add(1, "output", b"{}\n")
    await second.commit()
    found = look_up(store, shard)
    assert isinstance(found, Committed)
    assert found.waits == second.waits.past
    assert (await second.finish()).waits == second.waits.past


def test_a_reason_of_a_person_does_not_pass_for_a_tenant() -> None:
    forged = 'by tenant "ann" through the API'
    assert [who(by) for by in (ByTenant(tenant="ann"), forged, "from\n the UI", "", None)] == [
        forged,
        f"in Temporal ({forged})",
        "in Temporal (from the UI)",
        *["in Temporal"] * 2,
    ]


def test_a_reason_is_bounded() -> None:
    assert len(who("x" * 10_010)) == len(who("")) + len(" ()") + MAX_REASON
    assert len(who(ByTenant(tenant="x" * 10_010))) < 2 * MAX_REASON


def test_the_end_is_reported_as_it_was() -> None:
    spec = make_spec(created_ms=NOW * 1000)
    errors = [ErrorCount(code="context_length_exceeded", count=312, first_lines=[88])]
    status = BatchStatus(
        phase=BatchPhase.COMPLETED,
        completed_at=NOW + 900,
        counts=Counts(total=312, failed=312),
        error_summary=errors,
        history=History(waits=[past(0, 0), past(60, 900, subject="store")], dropped=4),
    )

    def messages(status: BatchStatus) -> list[str]:
        record = BatchRecord(spec=spec, status=status)
        return [event.message for event in events_of(BatchView(record, None), NOW + 9999)]

    assert messages(status) == [
        "Created.",
        "Waited 14 min: store is away.",
        "312 × context_length_exceeded (first line 88)",
        "4 more events and waits are not listed.",
        "Completed after 15 min. All 312 requests failed.",
    ]
    failed = BatchStatus(
        phase=BatchPhase.FAILED, failed_at=NOW + 2, errors=[BatchError(code="c", message="Bad.", line=2)]
    )
    assert messages(failed)[-1] == "Failed after 2 s. Bad. (line 2)"
    running = BatchStatus(phase=BatchPhase.IN_PROGRESS, history=History(waits=[past(9999 - 125, None)]))
    assert messages(running) == ["Created.", "Waiting for 2 min so far: gpu is away."]


async def test_pages_of_a_running_batch_hold_each_event_once_and_its_id_stays(tmp_path: Path) -> None:
    api = open_api(tmp_path)
    spec = make_spec(created_ms=NOW * 1000, tenant="default", batch_id=f"batch_{'1' * 32}")
    notes = [NotedEvent(at=NOW + at, type=EventType.PAUSED, message=str(at)) for at in (1, 200, 200)]
    waits = [past(20, 90), past(60, 95, subject="store")]
    running = BatchStatus(
        phase=BatchPhase.IN_PROGRESS,
        error_summary=[ErrorCount(code="context_length_exceeded", count=1)],
        history=History(events=notes, waits=waits, dropped=2),
    )

    async def listed(**query: Any) -> dict[str, Any]:
        return (await api.http.get(f"/v1/batches/{spec.batch_id}/events", params=query)).json()

    api.gateway.set_status(BatchRecord(spec=spec, status=running), running)
    pages = [await listed(limit=1)]
    while pages[-1]["has_more"]:
        pages.append(await listed(limit=1, after=pages[-1]["last_id"]))
    first = [event for page in pages for event in page["data"]]
    assert first == (await listed())["data"]
    assert [event["created_at"] - NOW for event in first] == [0, 1, 20, 60, 200, 200]

    # One becomes known that began before others, and the batch ends.
    late = running.history.with_waits([past(20, 90, subject="another"), past(30, 40, subject="third")])
    ended = running.model_copy(update={"phase": BatchPhase.COMPLETED, "completed_at": NOW + 300, "history": late})
    api.gateway.set_status(BatchRecord(spec=spec, status=ended), ended)
    found = (await listed())["data"]
    assert [event for event in found if event["id"] in {one["id"] for one in first}] == first
    assert [event["type"] for event in found if event not in first] == [
        "wait",
        "wait",
        "errors",
        "dropped",
        "completed",
    ]
