"""Failures of activities that Temporal retries. They carry the wait, and a text without an object's key."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.store.object_store import StoreError
from workflows.types import RunRequestsInput
from workflows.waits import Wait

log = logging.getLogger("everbatch")


def store_failure(error: StoreError, next_retry_delay: timedelta | None = None) -> ApplicationError:
    """Return the failure for Temporal, and log the error itself, which may contain a key."""
    log.warning("%s", error)
    wait = error.wait
    return ApplicationError(wait.text, wait, type="StoreError", next_retry_delay=next_retry_delay)


def try_again(task: RunRequestsInput, done: int, wait: Wait, seconds: float) -> ApplicationError:
    total = task.shard.requests
    return ApplicationError(
        f"{total - done} of {total} requests to retry: {wait.text}",
        wait.model_copy(update={"requests": total - done}),
        type="RequestsToRetry",
        next_retry_delay=timedelta(seconds=seconds),
        category=ApplicationErrorCategory.BENIGN,
    )


class StoreFailures(Interceptor):
    """Turns store errors into failures for Temporal. Activities that run shards do this themselves."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _StoreFailures(super().intercept_activity(next))


class _StoreFailures(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            return await super().execute_activity(input)
        except StoreError as error:
            raise store_failure(error) from None
