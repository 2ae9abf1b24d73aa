"""Whether a namespace is set up, by what Temporal answers."""

from __future__ import annotations

from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.temporal.namespace import NotSetUpError, check_namespace


class FakeClient:
    namespace = "batches"

    def __init__(self, status: RPCStatusCode | None) -> None:
        self._status = status

    async def count_workflows(self, query: str) -> Any:
        if self._status:
            raise RPCError("no", self._status, b"")


async def check(status: RPCStatusCode | None) -> bool:
    return await check_namespace(cast(Client, FakeClient(status)))


async def test_a_namespace_that_answers_is_set_up() -> None:
    assert await check(None)


async def test_who_may_not_look_goes_on() -> None:
    assert await check(RPCStatusCode.PERMISSION_DENIED)


@pytest.mark.parametrize("status", [RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT])
async def test_what_is_missing_is_said(status: RPCStatusCode) -> None:
    with pytest.raises(NotSetUpError, match=r"namespace batches.*: run `everbatch setup`"):
        await check(status)


@pytest.mark.parametrize("status", [RPCStatusCode.UNAVAILABLE, RPCStatusCode.UNAUTHENTICATED])
async def test_no_answer_is_no_verdict(status: RPCStatusCode) -> None:
    with pytest.raises(RPCError):
        await check(status)
