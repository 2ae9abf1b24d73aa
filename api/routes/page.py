"""The web page: static files of this package, which any browser may load and which use the public API."""

from __future__ import annotations

import hashlib
import html
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS: Final = {
    # Allow only this server's own files and API: no other site, no inline script or style, no embedding in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_router(temporal_ui_url: str) -> APIRouter:
    """Return the routes of the page. ``temporal_ui_url`` is the URL of a namespace in Temporal's UI, or empty."""
    router = APIRouter(include_in_schema=False)
    found = {entry.name: entry.read_bytes() for entry in (files("api") / "page").iterdir()}
    ui = html.escape(temporal_ui_url.rstrip("/")).encode()
    index = found.pop("index.html").replace(b"{temporal_ui}", ui)
    _add(router, "/", index, ".html")
    _add(router, "/docs", found.pop("docs.html"), ".html")
    for name, content in found.items():
        _add(router, f"/page/{name}", content, name[name.rindex(".") :])
    return router


def _add(router: APIRouter, path: str, content: bytes, suffix: str) -> None:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": tag, "Content-Type": _TYPES[suffix]}

    async def page_file(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    router.get(path, response_class=Response, name=f"page {path}")(page_file)
