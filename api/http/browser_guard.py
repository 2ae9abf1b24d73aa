"""Refuses requests that web pages send to a server without API keys.

A browser sends requests for any page that it shows. Two kinds of them reach a server on the user's own machine. A page
whose name was made to resolve to this machine (DNS rebinding) sends a foreign ``Host``, and can read the response. A
form or script of another site sends a foreign ``Origin`` or ``Sec-Fetch-Site``; other programs send neither of these.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.auth import refuse
from api.http.errors import ApiError, shown

ANY_HOST: Final = "*"


class BrowserGuard:
    """Refuses requests for unknown host names (421) and from pages of other origins (403), on every path."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """Args: ``hosts`` are the host names, in lower case, that are accepted in addition to those of loopback."""
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refusal(scope)):
            await refuse(error, Request(scope, receive), send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host")
        if host is not None and not self._is_ours(host, scope):
            return ApiError(
                421,
                f"Without API keys, this server does not accept the host name {shown(host)}. Use localhost, add the "
                "name to EVERBATCH_ALLOWED_HOSTS, or require API keys with EVERBATCH_KEYS_FILE.",
                code="host_not_allowed",
            )
        if is_cross_origin(headers):
            return ApiError(
                403,
                "This server has no key file, and takes no requests from pages of other sites or ports: set "
                "EVERBATCH_KEYS_FILE to a file of keys.",
                code="origin_not_allowed",
            )
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        name = _name_of(host)
        if name == "localhost" or name.endswith(".localhost") or name in self._hosts or ANY_HOST in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # DNS rebinding needs a name, so a literal address is safe. `--insecure` listens beyond loopback.
        return address.is_loopback or str(address) == (scope.get("server") or ("",))[0]


def is_cross_origin(headers: Headers) -> bool:
    """Return whether a browser reports that a page of another origin sends the request."""
    origin = headers.get("origin")
    if origin is not None:
        _, _, origin_host = origin.partition("://")  # the origin `null` has no host
        return not origin_host or origin_host.lower() != headers.get("host", "").lower()
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _name_of(host: str) -> str:
    """Return the name in ``name:port``, in lower case and without a trailing dot; empty if the port is malformed."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = host.partition(":")
    if port and not port.isdecimal():
        return ""
    return name.lower().removesuffix(".")
