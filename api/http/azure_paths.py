"""Azure's paths: what its clients ask for below ``/openai`` is answered as what it is below ``/v1``."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

_AZURE: Final = re.compile(r"/openai(?:/v1)?(/(?:files|uploads|batches|models)(?:/.*)?)", re.DOTALL)


class AzurePaths:
    """Stands before everything that looks at a path: who needs a key, and whose turn it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (match := _AZURE.fullmatch(scope["path"])):
            scope = {**scope, "path": f"/v1{match[1]}"}
        await self._app(scope, receive, send)
