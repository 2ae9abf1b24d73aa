"""The endpoints that batches may call."""

from __future__ import annotations

import re
from typing import Final

from workflows.contract import MESSAGES_ENDPOINT

ENDPOINTS: Final = (
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
    MESSAGES_ENDPOINT,
)
"""The endpoints of OpenAI's Batch API, in its order, and the endpoint of Anthropic's."""

_EXTRA: Final = re.compile(r"/v1(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")


def check_endpoint(endpoint: str) -> None:
    """Raise ``ValueError`` if an additional endpoint that an operator has configured is not valid."""
    if not _EXTRA.fullmatch(endpoint):
        raise ValueError(f"{endpoint!r} is not an endpoint such as /v1/score")
