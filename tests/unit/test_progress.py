from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure, TimeoutFailureInfo
from temporalio.api.workflow.v1 import PendingActivityInfo

from api.gateway.interface import Progress
from api.gateway.pace import Paces
from api.gateway.pending import mark_missing_upstreams, read_pending
from api.gateway.progress import HighWater, live_status, progress_of, unfinished
from api.gateway.waits import duration, waits_of, with_waits
from tests.fakes.worker import make_spec
from workflows.types import BatchPhase, BatchStatus, Counts, ShardProgress
from workflows.waits import EndsBy, Wait, WaitKind, store_wait

NOW = 1_800_000_000.0
SPEC = make_spec(created_ms=int(NOW - 3600) * 1000)


def pending(activity_id: str, heartbeat: ShardProgress | None = None, **fields: Any) -> PendingActivityInfo:
    info = PendingActivityInfo(
        activity_id=activity_id, state=PendingActivityState.PENDING_ACTIVITY_STATE_STARTED, **fields
    )
    if heartbeat:
        info.heartbeat_details.CopyFrom(Payloads(payloads=[Payload(data=heartbeat.model_dump_json().encode())]))
    return info


def said(completed: int, failed: int, in_flight: int, limit: int, wait: Wait | None = None) -> ShardProgress:
    return ShardProgress(completed=completed, failed=failed, in_flight=in_flight, wait=wait, limit=limit)


def away(name: str, requests: int = 1, ends_by: EndsBy = EndsBy.ITSELF) -> Wait:
    return Wait(kind=WaitKind.UPSTREAM, subject=name, reason="is away", ends_by=ends_by, requests=requests)


def failure(wait: Wait) -> Failure:
    details = Payloads(payloads=[Payload(data=wait.model_dump_json().encode())])
    return Failure(message="for Temporal's UI", application_failure_info=ApplicationFailureInfo(details=details))


def waiting(
    activity_id: str, failure: Failure, seconds: int, heartbeat: ShardProgress | None = None
) -> PendingActivityInfo:
    info = pending(activity_id, heartbeat, last_failure=failure)
    info.state = PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    info.next_attempt_schedule_time.CopyFrom(Timestamp(seconds=int(NOW) + seconds))
    return info


def progress(status: BatchStatus, *infos: PendingActivityInfo) -> tuple[Counts, Progress]:
    if status.counts.total and status.phase is BatchPhase.VALIDATING:
        status = status.model_copy(update={"phase": BatchPhase.IN_PROGRESS})
    activities = read_pending(infos)
    running = unfinished(status, activities)
    live = live_status(status, running)
    counts = live.counts
    waits = waits_of(SPEC, status, activities, NOW)
    pace = Paces().of(SPEC.batch_id, live, running, NOW)
    return counts, with_waits(progress_of(status, activities, pace), waits, SPEC, live, NOW)


def test_running_shards_count_and_finished_ones_count_once() -> None:
    status = BatchStatus(counts=Counts(total=300, completed=100), finished_shards="0")
    counts, shown = progress(
        status,
        pending("shard-0", said(99, 0, 1, 64)),
        pending("shard-1", said(40, 2, 58, 32)),
        pending("shard-2"),
    )
    assert counts == Counts(total=300, completed=140, failed=2)
    assert (shown.in_flight, shown.in_flight_limit) == (59, 32)


def test_a_shard_that_waits_keeps_its_counts_and_says_why_and_until_when() -> None:
    status = BatchStatus(counts=Counts(total=200))
    counts, shown = progress(
        status,
        waiting("shard-0", failure(away("gpu", 3)), 40, said(97, 0, 9, 64)),
        waiting("shard-1", failure(away("gpu", 50)), 12),
    )
    assert counts.completed == 97
    assert (shown.in_flight, shown.next_attempt_at) == (0, int(NOW) + 12)
    assert shown.waiting
    # Nothing is in flight, so those wait too that have not come to their turn.
    assert shown.waiting.model_dump() == {
        "kind": "upstream",
        "subject": "gpu",
        "reason": "is away",
        "ends_by": "itself",
        "requests": 103,
        "next_attempt_at": int(NOW) + 12,
    }
    text = "Waiting: gpu is away; 103 of 200 requests wait; next try in 12 s; the window ends in 23 h."
    assert shown.waiting_reason == text


def test_who_has_to_act_is_reported() -> None:
    status = BatchStatus(counts=Counts(total=2))
    queued = waiting("line-1", failure(away("gpu", 1, EndsBy.OPERATOR)), -3)
    _, shown = progress(status, queued)
    assert shown.waiting_reason == (
        "Waiting: gpu is away; 2 of 2 requests wait; this does not end by itself, an operator has to act; "
        "next try at any moment; the window ends in 23 h."
    )


def test_an_outage_that_is_over_is_not_named_any_more() -> None:
    status = BatchStatus(counts=Counts(total=2))
    queued = waiting("line-1", failure(away("gpu")), -3)
    assert progress(status, queued)[1].waiting_reason
    assert progress(status, queued, pending("line-2"))[1] == Progress(in_flight=1)


def test_a_lost_worker_is_called_that() -> None:
    timeout = Failure(message="activity Heartbeat timeout", timeout_failure_info=TimeoutFailureInfo())
    _, shown = progress(BatchStatus(counts=Counts(total=1)), waiting("line-1", timeout, 2))
    assert shown.waiting
    assert (shown.waiting.kind, shown.waiting.subject) == ("worker", "the worker")
    assert "was lost" in shown.waiting.reason


def test_a_bug_is_reported_as_it_is_and_needs_an_operator() -> None:
    _, shown = progress(BatchStatus(counts=Counts(total=1)), waiting("line-1", Failure(message="a bug" + "!" * 999), 2))
    assert shown.waiting
    assert (shown.waiting.kind, shown.waiting.ends_by) == ("worker", "operator")
    assert shown.waiting.reason.startswith("failed and tries again: a bug!!!")
    assert len(shown.waiting.reason) < 300


def test_answers_that_wait_for_the_store_are_reported_while_requests_are_in_flight() -> None:
    status = BatchStatus(counts=Counts(total=100))
    wait = store_wait("its disk is full", is_lasting=True)
    _, shown = progress(status, pending("shard-0", said(0, 0, 5, 64, wait)))
    assert shown.waiting
    assert (shown.waiting.kind, shown.waiting.ends_by, shown.waiting.requests) == ("store", "operator", None)
    assert (shown.waiting_reason or "").startswith("Waiting: the store cannot be used: its disk is full; this does not")


def test_a_paused_batch_says_so_before_anything_else_and_how_it_goes_on() -> None:
    status = BatchStatus(counts=Counts(total=2), paused_at=int(NOW))
    _, shown = progress(status, waiting("line-1", failure(away("gpu")), 9), pending("line-2"))
    assert shown.in_flight == 1
    assert shown.waiting
    assert (shown.waiting.kind, shown.waiting.ends_by) == ("pause", "user")
    assert f"POST /v1/batches/{SPEC.batch_id}/resume" in shown.waiting.reason


def test_what_is_paused_in_temporal_alone_is_for_its_operator_to_resume() -> None:
    info = waiting("line-1", failure(away("gpu")), 9)
    info.state = PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED
    _, shown = progress(BatchStatus(counts=Counts(total=2)), info)
    assert shown.waiting
    assert (shown.waiting.kind, shown.waiting.ends_by) == ("pause", "operator")


def test_a_long_validation_and_the_writing_of_files_are_reported() -> None:
    _, shown = progress(BatchStatus())
    assert (shown.waiting and shown.waiting.kind) == "validating"
    status = BatchStatus(phase=BatchPhase.FINALIZING, finalizing_at=int(NOW) - 3, counts=Counts(total=5))
    assert progress(status)[1].waiting_reason == "Waiting: the result files are being written."
    at_once = status.model_copy(update={"finalizing_at": int(NOW)})
    assert progress(at_once)[1].waiting is None


def test_durations_are_rounded_down() -> None:
    shown = [duration(seconds) for seconds in (1.9, 119, 120, 7199, 7200, 259_199, 259_200)]
    assert shown == ["1 s", "119 s", "2 min", "119 min", "2 h", "71 h", "3 d"]


def test_counts_shown_never_go_back() -> None:
    marks = HighWater()

    def shown(counts: Counts) -> Counts:
        return marks.record(SPEC, BatchStatus(counts=counts)).status.counts

    assert shown(Counts(total=10, completed=5, failed=1)) == Counts(total=10, completed=5, failed=1)
    assert shown(Counts(total=10, completed=3)) == Counts(total=10, completed=5, failed=1)
    marks.forget(SPEC.batch_id)
    assert shown(Counts(total=10, completed=3)) == Counts(total=10, completed=3)


def test_a_cancel_that_was_shown_is_taken_back_only_by_the_workflow_itself() -> None:
    marks, running, cancelling = HighWater(), BatchStatus(), BatchStatus(cancelling_at=7)

    def shown(status: BatchStatus, seen_at: float, is_from_workflow: bool = False) -> int | None:
        return marks.record(SPEC, status, seen_at, is_from_workflow).status.cancelling_at

    assert shown(running, seen_at=1.0) is None
    assert shown(cancelling, seen_at=2.0) == 7
    assert shown(running, seen_at=3.0) == 7, "a description may not know of a cancel that a task under way takes in"
    assert shown(running, seen_at=1.5, is_from_workflow=True) == 7, "it was asked before the cancel"
    assert shown(running, seen_at=3.0, is_from_workflow=True) is None, "it was reset"


def test_a_heartbeat_of_another_version_is_none() -> None:
    info = pending("shard-0")
    info.heartbeat_details.CopyFrom(Payloads(payloads=[Payload(data=b"[1, 2, 3]")]))
    assert progress(BatchStatus(counts=Counts(total=5)), info)[0] == Counts(total=5)


def test_a_shard_that_is_pausing_still_has_requests_in_flight() -> None:
    info = pending("shard-0", said(1, 0, 8, 64))
    info.state = PendingActivityState.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED
    assert progress(BatchStatus(counts=Counts(total=100)), info)[1].in_flight == 8


def of_upstream(name: str, info: PendingActivityInfo) -> PendingActivityInfo:
    info.activity_options.task_queue.name = f"everbatch-inference-{name}"
    return info


def test_an_upstream_that_is_away_is_named_while_others_answer() -> None:
    status = BatchStatus(counts=Counts(total=400))
    down = of_upstream("a", waiting("shard-0", failure(away("a", 100)), -1))
    busy = of_upstream("b", pending("shard-1", said(40, 0, 60, 64)))
    _, shown = progress(status, down, busy)
    assert shown.waiting
    assert (shown.waiting.subject, shown.waiting.requests, shown.in_flight) == ("a", 100, 60)
    back = of_upstream("a", pending("shard-2", said(0, 0, 8, 8)))
    _, shown = progress(status, down, busy, back)
    assert (shown.waiting, shown.waiting_reason, shown.in_flight, shown.in_flight_limit) == (None, None, 68, 72)


def test_all_that_is_waited_for_is_reported_the_soonest_first() -> None:
    status = BatchStatus(counts=Counts(total=400))
    infos = [
        of_upstream("a", waiting("shard-0", failure(away("a", 100)), 9)),
        of_upstream("b", waiting("shard-1", failure(away("b", 50)), 3)),
        of_upstream("b", waiting("shard-2", failure(away("b", 50)), 4)),
    ]
    _, shown = progress(status, *infos)
    assert shown.next_attempt_at == int(NOW) + 3
    assert shown.waiting_reason == (
        "Waiting: b is away; 100 of 400 requests wait; next try in 3 s; the window ends in 23 h. "
        "Also waiting: a is away."
    )


def test_an_upstream_that_is_no_more_is_reported() -> None:
    queue = "everbatch-inference"
    infos = [of_upstream("gone", pending("line-1")), of_upstream("here", pending("line-2"))]
    for info in infos:
        info.state = PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    infos += [pending("validate"), of_upstream("gone", pending("line-3"))]  # the last runs, so somebody has it
    found = mark_missing_upstreams(read_pending(infos), queue, ["here"])
    assert [item.wait.text if item.wait else "" for item in found] == [
        'upstream "gone" is not configured any more',
        "",
        "",
        "",
    ]
    assert mark_missing_upstreams(read_pending(infos), queue, ["here", "gone"]) == read_pending(infos)
