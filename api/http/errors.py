"""Errors in the format that OpenAI clients expect: ``{"error": {message, type, param, code}}`` with all four keys.

For FastAPI's own ``{"detail": …}``, a client shows only "Error code: 422". So each of FastAPI's handlers is replaced,
and invalid input is answered with 400.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from activities.store.object_store import ObjectNotFoundError, StoreError
from api.gateway.interface import TemporalUnavailableError
from api.http.anthropic_errors import anthropic_error, is_anthropic
from api.http.logs import REQUEST_ID
from workflows.ids import BatchRef

log = logging.getLogger("everbatch.api")

RETRY_AFTER = {"Retry-After": "5"}
_SHOWN = 100
"""Maximum number of characters of a client's value that an error message repeats."""


class ApiError(HTTPException):
    """An error response.

    It is an ``HTTPException`` because FastAPI turns any other exception that is raised while it reads a body into a
    400 of its own.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.message = message
        self.type = type
        self.code = code
        self.param = param


def error_response(error: ApiError, path: str = "") -> Response:
    """Return the response for an error, in the form that clients of the API at the request's ``path`` expect."""
    if is_anthropic(path):
        content = anthropic_error(error.status_code, error.message, REQUEST_ID.get())
    else:
        detail = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        content = {"error": detail}
    return JSONResponse(content, error.status_code, headers=error.headers)


def server_error() -> ApiError:
    """Return the error for a bug in the server."""
    return ApiError(500, "The server had an error while processing your request.", "server_error")


def unavailable(what: str, condition: str = "") -> ApiError:
    """Return a 503. Args: ``what`` is unavailable; ``condition`` is the reason, if clients may know it."""
    why = f": {condition}" if condition else ""
    return ApiError(
        503, f"{what} is currently unavailable{why}. Please try again.", "server_error", headers=RETRY_AFTER
    )


def permanent_conflict(message: str, code: str | None = None) -> ApiError:
    """Return a 409 that no retry can resolve. Without its header, OpenAI's clients would retry it twice."""
    return ApiError(409, message, code=code, headers={"x-should-retry": "false"})


@contextlib.contextmanager
def no_batch_found(ref: BatchRef) -> Generator[None]:
    """Turn an :class:`ObjectNotFoundError` of the block into a 404 that names the batch."""
    try:
        yield
    except ObjectNotFoundError:
        raise ApiError(404, f"No batch found with id '{shown(ref.batch_id)}'.") from None


def missing_parameter(param: str) -> ApiError:
    return ApiError(400, f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def shown(value: object) -> str:
    """Return a client's value as text that is short enough for a message."""
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


# Pydantic's errors in OpenAI's wording

_EXPECTED = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model": "an object",
    "literal": "a string",
}


def _named(value: object) -> str:
    names: dict[type, str] = {
        bool: "a boolean",
        int: "an integer",
        float: "a decimal number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), "something else")


def _validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return one of pydantic's errors: a missing value rather than a wrong type, and that rather than a wrong value.

    Of several equal ones, the first counts, in the order of query, headers and body and of the fields of each.
    """
    error = min(errors, key=_severity)
    path = [str(part) for part in cast("tuple[object, ...]", error["loc"])[1:]]
    is_key = bool(path) and path[-1] == "[key]"
    if is_key:
        path = path[:-2]
    param = shown(".".join(path)) or None
    code, message = _translated(str(error["type"]), param, error.get("input"), error.get("ctx") or {}, is_key)
    return ApiError(400, message, code=code, param=None if error["type"] == "json_invalid" else param)


def _severity(error: Mapping[str, Any]) -> int:
    kind = str(error["type"])
    if kind == "missing":
        return 0
    is_type = kind.endswith(("_type", "_parsing")) or (kind == "literal_error" and not isinstance(error["input"], str))
    return 1 if is_type else 2


def _translated(
    kind: str, param: str | None, value: object, limits: Mapping[str, Any], is_key: bool
) -> tuple[str | None, str]:
    if param is None:
        if kind == "missing":
            return "missing_required_parameter", "The request has no body. Expected a JSON object."
        return "invalid_type", f"Invalid body: expected an object of type application/json, but got {_named(value)}."
    if kind == "missing":
        return "missing_required_parameter", f"Missing required parameter: '{param}'."
    if kind == "json_invalid":
        return None, f"We could not parse the JSON body of your request: {limits.get('error')}."
    if kind == "literal_error" and isinstance(value, str):
        # Pydantic lists them as 'a', 'b' or 'c'.
        supported = str(limits["expected"]).replace(" or ", " and ")
        return "invalid_value", f"Invalid value: '{shown(value)}'. Supported values are: {supported}."
    if kind == "value_error":  # raised by a check of our own, which gives the text
        return "invalid_value", f"Invalid '{param}': {limits.get('error')}."
    if kind == "string_unicode":
        return "invalid_value", f"Invalid '{param}': the string is not valid Unicode."
    expected = _EXPECTED.get(kind.split("_")[0])
    if kind in ("string_too_long", "string_too_short", "too_long"):
        return _length_error(kind, param, value, limits, is_key)
    if kind == "less_than_equal":
        text = f"integer above maximum value. Expected a value <= {limits['le']}, but got {shown(value)} instead."
        return "integer_above_max_value", f"Invalid '{param}': {text}"
    if kind == "greater_than_equal":
        text = f"integer below minimum value. Expected a value >= {limits['ge']}, but got {shown(value)} instead."
        return "integer_below_min_value", f"Invalid '{param}': {text}"
    if expected:
        return "invalid_type", f"Invalid type for '{param}': expected {expected}, but got {_named(value)} instead."
    return "invalid_value", f"Invalid '{param}'."


def _length_error(
    kind: str, param: str, value: object, limits: Mapping[str, Any], is_key: bool
) -> tuple[str | None, str]:
    if kind == "too_long":
        maximum, got = limits["max_length"], len(cast("dict[str, object]", value))
        text = f"Expected an object with at most {maximum} properties, but got an object with {got} properties instead."
        return "object_above_max_properties", f"Invalid '{param}': too many properties. {text}"
    length = len(value) if isinstance(value, str) else 0
    if kind == "string_too_short":
        text = f"Expected a string with minimum length {limits['min_length']}, but got an empty string instead."
        return "empty_string", f"Invalid '{param}': empty string. {text}"
    maximum = limits["max_length"]
    if is_key:
        text = f"Expected a name with maximum length {maximum}, but got one with length {length} instead."
        return "property_name_above_max_length", f"Invalid '{param}': property name too long. {text}"
    text = f"Expected a string with maximum length {maximum}, but got a string with length {length} instead."
    return "string_above_max_length", f"Invalid '{param}': string too long. {text}"


# Handlers


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error_response(error, request.scope["path"])
    message, headers = str(error.detail), error.headers
    path: str = request.scope["path"]  # not from `request.url`, which fails if the query is not text
    if error.status_code == 404:
        message = f"Invalid URL ({request.method} {shown(path)})"
        if any(_has_route(request, other) for other in (f"/v1{path.removeprefix('/v1')}", path.removeprefix("/v1"))):
            ends = "with nothing behind the host" if "/messages" in path else "with it"
            message += f". The paths of this API begin with /v1 once: the base URL of a client has to end {ends}."
    elif error.status_code == 405:
        message = f"Invalid method for URL ({request.method} {shown(path)})"
        headers = {"Allow": ", ".join(_allowed_methods(request))}
    return error_response(ApiError(error.status_code, message, headers=headers), path)


def _has_route(request: Request, path: str) -> bool:
    routes = cast("FastAPI", request.app).routes
    return path.startswith("/v1/") and any(
        route.matches({**request.scope, "path": path})[0] is not Match.NONE for route in routes
    )


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of the URL. A route knows only its own methods, and most URLs here have several routes."""
    routes = cast("FastAPI", request.app).routes
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(_validation_error(error.errors()), request.scope["path"])


async def _not_found(request: Request, error: Exception) -> Response:
    # Routes report missing objects themselves. This handles objects that disappear while a route runs.
    error = ApiError(404, "An object that the request names no longer exists.")
    return error_response(error, request.scope["path"])


async def _store_error(request: Request, error: Exception) -> Response:
    log.warning("%s", error)
    assert isinstance(error, StoreError)
    return error_response(unavailable("The file store", error.condition), request.scope["path"])


async def _temporal_error(request: Request, error: Exception) -> Response:
    log.warning("Temporal is not available: %s", error)
    return error_response(unavailable("Temporal"), request.scope["path"])


def add_error_handlers(app: FastAPI) -> None:
    """Register the handlers. :class:`api.http.middleware.RequestMiddleware` answers all other errors."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(ObjectNotFoundError, _not_found)
    app.add_exception_handler(StoreError, _store_error)
    app.add_exception_handler(TemporalUnavailableError, _temporal_error)
