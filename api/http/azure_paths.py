"""Azure's paths: a request under ``/openai`` is handled as the same request under ``/v1``."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

_AZURE: Final = re.compile(r"/openai(?:/v1)?(/(?:files|uploads|batches|models)(?:/.*)?)", re.DOTALL)


class AzurePaths:
    """Has to run before everything that looks at the path: authentication and the limits of concurrent requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (match := _AZURE.fullmatch(scope["path"])):
            scope = {**scope, "path": f"/v1{match[1]}"}
        await self._app(scope, receive, send)
