"""How an activity fails that cannot use the store: with what it waits for, in words without an object's key."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.store.object_store import StoreError

log = logging.getLogger("everbatch")


def store_failure(error: StoreError, next_retry_delay: timedelta | None = None) -> ApplicationError:
    """The failure for Temporal. The error itself, which may name a key, goes to the log."""
    log.warning("%s", error)
    wait = error.wait
    return ApplicationError(wait.text, wait, type="StoreError", next_retry_delay=next_retry_delay)


class StoreFailures(Interceptor):
    """For the workers of all activities but shards, which see to it themselves."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _StoreFailures(super().intercept_activity(next))


class _StoreFailures(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            return await super().execute_activity(input)
        except StoreError as error:
            raise store_failure(error) from None
