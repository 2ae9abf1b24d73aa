"""The Temporal Schedule that runs the janitor."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)

from workflows.contract import JANITOR_WORKFLOW
from workflows.types import DeleteExpiredInput

MIN_CATCH_UP: Final = timedelta(minutes=1)


def schedule_id(task_queue: str) -> str:
    """Return the id of the schedule, and of its workflow. All workers of a task queue share one janitor."""
    return f"{task_queue}-janitor"


async def prepare_schedule(client: Client, task_queue: str, every: timedelta) -> None:
    """Schedule the janitor at this interval. Idempotent; a schedule that an operator has paused stays paused.

    Raises:
        RPCError: Temporal refuses, for example because of a missing permission.
    """
    name = schedule_id(task_queue)
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            JANITOR_WORKFLOW,
            DeleteExpiredInput(),
            id=name,
            task_queue=task_queue,
            static_summary="delete expired files and leftovers",
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        # After an outage, a single run makes up for all that were missed.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=max(every, MIN_CATCH_UP)),
    )

    async def updated(existing: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule.state = existing.description.schedule.state
        return ScheduleUpdate(schedule)

    try:
        await client.create_schedule(name, schedule)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(name).update(updated)
