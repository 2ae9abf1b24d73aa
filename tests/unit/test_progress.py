from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.failure.v1 import Failure, TimeoutFailureInfo
from temporalio.api.workflow.v1 import PendingActivityInfo

from api.progress import HighWater, live_counts, progress_of, read_pending, tell_missing
from api.views import Progress
from workflows.types import BatchStatus, Counts, ShardProgress

NOW = 1_800_000_000.0


def pending(activity_id: str, heartbeat: ShardProgress | None = None, **fields: Any) -> PendingActivityInfo:
    info = PendingActivityInfo(
        activity_id=activity_id, state=PendingActivityState.PENDING_ACTIVITY_STATE_STARTED, **fields
    )
    if heartbeat:
        info.heartbeat_details.CopyFrom(Payloads(payloads=[Payload(data=heartbeat.model_dump_json().encode())]))
    return info


def said(completed: int, failed: int, in_flight: int, waits_for: str, limit: int) -> ShardProgress:
    return ShardProgress(completed=completed, failed=failed, in_flight=in_flight, waits_for=waits_for, limit=limit)


def waiting(
    activity_id: str, failure: Failure, seconds: int, heartbeat: ShardProgress | None = None
) -> PendingActivityInfo:
    info = pending(activity_id, heartbeat, last_failure=failure)
    info.state = PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    info.next_attempt_schedule_time.CopyFrom(Timestamp(seconds=int(NOW) + seconds))
    return info


def progress(status: BatchStatus, *infos: PendingActivityInfo) -> tuple[Counts, Progress]:
    activities = read_pending(infos)
    counts = live_counts(status, activities)
    return counts, progress_of(status, counts, activities, NOW)


def test_running_shards_count_and_finished_ones_count_once() -> None:
    status = BatchStatus(counts=Counts(total=300, completed=100), finished_shards="0")
    counts, shown = progress(
        status,
        pending("shard-0", said(99, 0, 1, "", 64)),
        pending("shard-1", said(40, 2, 58, "", 32)),
        pending("shard-2"),
    )
    assert counts == Counts(total=300, completed=140, failed=2)
    assert (shown.in_flight, shown.in_flight_limit) == (59, 32)


def test_a_shard_that_waits_keeps_its_counts_and_says_why_and_until_when() -> None:
    status = BatchStatus(counts=Counts(total=200))
    failure = Failure(message="3 of 100 requests to retry: HTTP 503 Service Unavailable")
    counts, shown = progress(
        status,
        waiting("shard-0", failure, 40, said(97, 0, 9, "", 64)),
        waiting("shard-1", Failure(message="sooner"), 12),
    )
    assert counts.completed == 97
    assert (shown.in_flight, shown.waiting_reason, shown.next_attempt_at) == (0, "sooner", int(NOW) + 12)


def test_an_outage_that_is_over_is_not_named_any_more() -> None:
    status = BatchStatus(counts=Counts(total=2))
    queued = waiting("line-1", Failure(message="1 of 1 requests to retry: HTTP 503"), -3)
    assert progress(status, queued)[1].waiting_reason
    assert progress(status, queued, pending("line-2"))[1] == Progress(in_flight=1)


def test_a_lost_worker_is_called_that() -> None:
    failure = Failure(message="activity Heartbeat timeout", timeout_failure_info=TimeoutFailureInfo())
    _, shown = progress(BatchStatus(counts=Counts(total=1)), waiting("line-1", failure, 2))
    assert shown.waiting_reason
    assert "worker was lost" in shown.waiting_reason


def test_answers_that_wait_for_the_store_are_named() -> None:
    status = BatchStatus(counts=Counts(total=100))
    assert (
        progress(status, pending("shard-0", said(0, 0, 5, "the store is full", 64)))[1].waiting_reason
        == "the store is full"
    )


def test_a_paused_batch_says_so_before_anything_else() -> None:
    status = BatchStatus(counts=Counts(total=2), paused_at=int(NOW))
    _, shown = progress(status, waiting("line-1", Failure(message="HTTP 503"), 9), pending("line-2"))
    assert shown == Progress(in_flight=1, waiting_reason="the batch is paused")


def test_rate_and_time_left_are_of_the_last_moments() -> None:
    status = BatchStatus(
        counts=Counts(total=1000, completed=400), in_progress_at=int(NOW) - 1000, rate_since=NOW - 10, rate_done=300
    )
    _, shown = progress(status)
    assert (shown.requests_per_second, shown.eta_seconds) == (10.0, 60)
    _, at_the_start = progress(BatchStatus(counts=Counts(total=5), in_progress_at=int(NOW)))
    assert (at_the_start.requests_per_second, at_the_start.eta_seconds) == (None, None)


def test_counts_shown_never_go_back() -> None:
    marks = HighWater()
    assert marks.raise_to("batch_1", Counts(total=10, completed=5, failed=1)).completed == 5
    assert marks.raise_to("batch_1", Counts(total=10, completed=3)) == Counts(total=10, completed=5, failed=1)
    marks.forget("batch_1")
    assert marks.raise_to("batch_1", Counts(total=10, completed=3)) == Counts(total=10, completed=3)


def test_a_heartbeat_of_another_version_is_none() -> None:
    info = pending("shard-0")
    info.heartbeat_details.CopyFrom(Payloads(payloads=[Payload(data=b"[1, 2, 3]")]))
    assert progress(BatchStatus(counts=Counts(total=5)), info)[0] == Counts(total=5)


def test_a_shard_that_is_pausing_still_has_requests_in_flight() -> None:
    info = pending("shard-0", said(1, 0, 8, "", 64))
    info.state = PendingActivityState.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED
    assert progress(BatchStatus(counts=Counts(total=100)), info)[1].in_flight == 8


def of_upstream(name: str, info: PendingActivityInfo) -> PendingActivityInfo:
    info.activity_options.task_queue.name = f"everbatch-inference-{name}"
    return info


def test_an_upstream_that_is_away_is_named_while_others_answer() -> None:
    status = BatchStatus(counts=Counts(total=400))
    away = of_upstream("a", waiting("shard-0", Failure(message="upstream a: connection refused"), -1))
    busy = of_upstream("b", pending("shard-1", said(40, 0, 60, "", 64)))
    _, shown = progress(status, away, busy)
    assert (shown.waiting_reason, shown.in_flight) == ("upstream a: connection refused", 60)
    back = of_upstream("a", pending("shard-2", said(0, 0, 8, "", 8)))
    _, shown = progress(status, away, busy, back)
    assert (shown.waiting_reason, shown.in_flight, shown.in_flight_limit) == (None, 68, 72)


def test_all_that_is_waited_for_is_told_the_soonest_first() -> None:
    status = BatchStatus(counts=Counts(total=400))
    infos = [
        of_upstream("a", waiting("shard-0", Failure(message="a is away"), 9)),
        of_upstream("b", waiting("shard-1", Failure(message="b is full"), 3)),
        of_upstream("b", waiting("shard-2", Failure(message="b is full, too"), 4)),
    ]
    _, shown = progress(status, *infos)
    assert (shown.waiting_reason, shown.next_attempt_at) == ("b is full; a is away", int(NOW) + 3)


def test_an_upstream_that_is_no_more_is_told() -> None:
    queue = "everbatch-inference"
    infos = [of_upstream("gone", pending("line-1")), of_upstream("here", pending("line-2"))]
    for info in infos:
        info.state = PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    infos += [pending("validate"), of_upstream("gone", pending("line-3"))]  # the last runs, so somebody has it
    found = tell_missing(read_pending(infos), queue, ["here"])
    assert [item.waits_for for item in found] == ["there is no upstream gone", "", "", ""]
    assert tell_missing(read_pending(infos), queue, ["here", "gone"]) == read_pending(infos)
