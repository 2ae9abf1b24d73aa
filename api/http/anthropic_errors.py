"""Errors in the form that Anthropic's clients expect: ``{"type": "error", "error": {type, message}, "request_id"}``."""

from __future__ import annotations

from typing import Any, Final

PREFIX: Final = "/v1/messages"

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def is_anthropic(path: str) -> bool:
    """Return whether a path belongs to Anthropic's API."""
    return f"{path}/".startswith(f"{PREFIX}/")


def anthropic_error(status: int, message: str, request_id: str | None) -> dict[str, Any]:
    """Return the body of an error response, which is also the ``error`` in the result of a failed request."""
    kind = _TYPES.get(status) or ("api_error" if status >= 500 or status < 400 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id or None}
