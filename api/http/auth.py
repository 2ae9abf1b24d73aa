"""Authentication, before anything else, so that the body of an unauthenticated request is never processed."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.bodies import Body
from api.http.errors import ApiError, error_response
from api.tenants.keys import KeyFile, TenantLimits
from workflows.ids import BatchRef

DEFAULT_TENANT: Final = "default"
"""The tenant of all requests to a server without a key file."""
REFUSED_BYTES: Final = 64 << 20
"""Maximum bytes read of a refused body. If it is longer, some clients see a broken connection instead of the error."""
_CALLER: Final = "everbatch.caller"


class Caller(NamedTuple):
    tenant: str
    limits: TenantLimits | None
    """``None`` if the server has no key file."""


class AuthMiddleware:
    """If the server has a key file, refuses every request under ``/v1`` without a valid key, even to unknown routes."""

    def __init__(self, app: ASGIApp, keys: KeyFile | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] + "/").startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        try:
            caller = self._caller(Headers(scope=scope))
        except ApiError as error:
            await refuse(error, Request(scope, receive), send)
            return
        scope[_CALLER] = caller

        async def send_for_tenant(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["openai-organization"] = caller.tenant
            await send(message)

        await self._app(scope, receive, send_for_tenant)

    def _caller(self, headers: Headers) -> Caller:
        if self._keys is None:
            return Caller(DEFAULT_TENANT, None)
        key = _given_key(headers)
        if not key:
            raise _unauthorized(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        ring = self._keys.current()
        tenant = ring.tenant_of(key)
        if tenant is None:
            raise _unauthorized("Incorrect API key provided.", code="invalid_api_key")
        return Caller(tenant, ring.limits(tenant))


def _given_key(headers: Headers) -> bytes:
    """Return the key from ``Authorization``, or from the header that Azure's or Anthropic's clients use."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        key = headers.get("api-key") or headers.get("x-api-key", "")
    return key.strip().encode("latin-1")  # the original bytes of the header


def _unauthorized(message: str, code: str | None = None) -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


async def refuse(error: ApiError, request: Request, send: Send) -> None:
    """Send an error at once, then read some of the body, for clients that read a response only after sending it.

    The connection is closed then: otherwise the server would read the rest, however long, to reach the next request.
    """
    response = error_response(error, request.scope["path"])
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        await response(request.scope, request.receive, send)
        return
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    await Body(request, REFUSED_BYTES).drain()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def caller_of(scope: Scope) -> Caller | None:
    """Return the caller that :class:`AuthMiddleware` identified, or ``None`` if the path is not under ``/v1``."""
    known = scope.get(_CALLER)
    return known if isinstance(known, Caller) else None


_BEARER = HTTPBearer(auto_error=False, scheme_name="bearer", description="A key of `everbatch keys create`.")
_API_KEY = APIKeyHeader(
    name="api-key", auto_error=False, scheme_name="api-key", description="The header that clients of Azure OpenAI send."
)
_X_API_KEY = APIKeyHeader(
    name="x-api-key", auto_error=False, scheme_name="x-api-key", description="As Anthropic's clients do."
)


async def caller(
    request: Request,
    _bearer: object = Security(_BEARER),
    _key: object = Security(_API_KEY),
    _x_key: object = Security(_X_API_KEY),
) -> Caller:
    """Return the caller that :class:`AuthMiddleware` identified. The security parameters only document the API.

    Raises:
        ApiError: the route is not under ``/v1``, so no key was checked.
    """
    known = caller_of(request.scope)
    if known is None:
        raise _unauthorized("You didn't provide an API key.")
    return known


CallerOf = Annotated[Caller, Depends(caller)]


async def tenant(caller: CallerOf) -> str:
    """Return the tenant whose files and batches the request can access."""
    return caller.tenant


Tenant = Annotated[str, Depends(tenant)]


async def batch_ref(batch_id: str, tenant: Tenant) -> BatchRef:
    """Return the batch that the request's path names. It may not exist."""
    return BatchRef(tenant, batch_id)


PathBatch = Annotated[BatchRef, Depends(batch_ref)]
