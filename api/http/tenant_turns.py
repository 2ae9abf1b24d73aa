"""Limits the requests of one tenant that an API process handles at once, so that they do not slow down other tenants.

Requests beyond the limit wait for the tenant's own earlier ones, in the order of their arrival, and are refused if that
takes too long. Three kinds have separate limits, so that a tenant's uploads do not delay its short requests either.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.auth import caller_of, refuse
from api.http.errors import ApiError

MAX_WAITING: Final = 500
"""Maximum number of waiting requests of one kind and tenant. Further ones are refused at once."""

_TRANSFER: Final = re.compile(
    r"POST /v1/(files|uploads/[^/]*/parts|messages/batches)"
    r"|GET /v1/(files/[^/]*/content|(messages/)?batches/[^/]*/results)"
)
_LIST: Final = re.compile(r"GET /v1/(files|batches|uploads|messages/batches)")


class Kind(Enum):
    """Kinds of requests: how many a tenant may have in progress, and for how many seconds further ones wait."""

    TRANSFER = (4, 30.0)
    LIST = (2, 10.0)
    OTHER = (16, 10.0)

    @property
    def maximum(self) -> int:
        return self.value[0]

    @property
    def patience(self) -> float:
        return self.value[1]


def kind_of(method: str, path: str) -> Kind:
    requested = f"{method} {path}"
    if _TRANSFER.fullmatch(requested):
        return Kind.TRANSFER
    return Kind.LIST if _LIST.fullmatch(requested) else Kind.OTHER


class TenantTurns:
    """Has to run after :class:`api.http.auth.AuthMiddleware`, which identifies the tenant of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._lanes: dict[tuple[str, Kind], _Lane] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = caller_of(scope)
        if caller is None:
            await self._app(scope, receive, send)
            return
        kind = kind_of(scope["method"], scope["path"])
        try:
            async with self._turn(caller.tenant, kind):
                await self._app(scope, receive, send)
        except _TooManyError:
            text = (
                f"Rate limit reached for requests in organization {caller.tenant}. Limit: {kind.maximum} of this kind "
                "at once. Please try again later."
            )
            error = ApiError(429, text, type="requests", code="rate_limit_exceeded", headers={"Retry-After": "5"})
            await refuse(error, Request(scope, receive), send)

    @asynccontextmanager
    async def _turn(self, tenant: str, kind: Kind) -> AsyncGenerator[None]:
        lane = self._lanes.setdefault((tenant, kind), _Lane(kind))
        lane.users += 1
        try:
            if lane.users > kind.maximum + MAX_WAITING:
                raise _TooManyError
            try:
                async with asyncio.timeout(kind.patience):
                    await lane.slots.acquire()
            except TimeoutError:
                raise _TooManyError from None
            try:
                yield
            finally:
                lane.slots.release()
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[tenant, kind]


class _Lane:
    def __init__(self, kind: Kind) -> None:
        self.slots = asyncio.Semaphore(kind.maximum)
        self.users = 0


class _TooManyError(Exception):
    """The request did not get a turn in time, or too many others are waiting for one."""
