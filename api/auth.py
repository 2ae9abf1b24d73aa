"""Whose request it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

DEFAULT_TENANT = "default"


async def tenant() -> str:
    """The tenant whose files and batches the request sees."""
    return DEFAULT_TENANT


Tenant = Annotated[str, Depends(tenant)]
