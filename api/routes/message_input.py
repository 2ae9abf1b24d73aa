"""Writes the inline requests of a message batch to the store as an input file while they arrive."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from starlette.requests import Request

from activities.raw_json import MAX_DEPTH, escaped, is_deeper
from activities.store.object_store import CHUNK, ObjectStore
from api.http.bodies import Body
from api.http.errors import ApiError
from api.http.json_items import JsonItems, MalformedItemsError, TooLongError
from api.http.store_sink import StoreSink, in_thread, sink_of
from workflows.contract import MESSAGES_ENDPOINT

_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_WRAPPING: Final = 1024
"""Bytes reserved in a line of the input file for everything but the parameters of its request."""
_ABSENT: Final = msgspec.Raw(b"")
_NO_STREAM: Final = (b"", b"false", b"null")
_REQUIRED: Final = (("model", b'"', "string"), ("max_tokens", b"0123456789", "integer"), ("messages", b"[", "list"))


class _Item(msgspec.Struct):
    custom_id: str
    params: msgspec.Raw


class _Params(msgspec.Struct):
    model: msgspec.Raw = _ABSENT
    max_tokens: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT


class _Rest(msgspec.Struct):
    requests: list[msgspec.Raw]


_decode_item = msgspec.json.Decoder(_Item).decode
_decode_params = msgspec.json.Decoder(_Params).decode
_decode_rest = msgspec.json.Decoder(_Rest).decode


@dataclass(frozen=True)
class ReceivedRequests:
    """Requests that have arrived completely. Their file is discarded unless it is committed."""

    count: int
    size: int
    sha256: str
    _sink: StoreSink

    async def commit(self) -> None:
        """Make the file visible in the store."""
        await in_thread(self._sink.commit)


@contextlib.asynccontextmanager
async def receive_requests(
    request: Request,
    store: ObjectStore,
    key: str,
    *,
    max_bytes: int,
    max_requests: int,
    max_line_bytes: int,
    arrived: Callable[[int], None],
) -> AsyncGenerator[ReceivedRequests]:
    """Stream the requests of a body to the object ``key``. A block that ends without a commit leaves nothing behind.

    ``arrived`` is called with the bytes of the file so far, and may raise an exception to stop the transfer.

    Raises:
        ApiError: the body or a request in it is invalid or above a limit.
        ClientDisconnect: the client disconnected before the end.
        StoreError: the store cannot be used.
    """
    body = Body(request, max_bytes)
    held = bytearray()
    async with sink_of(body, store, key) as sink:
        lines = _Lines(sink, max_requests, max_line_bytes)
        async for chunk in body.chunks():
            held += chunk
            if len(held) >= CHUNK:
                await in_thread(lines.write, bytes(held))
                held.clear()
                arrived(lines.size)
        await in_thread(lines.write, bytes(held))
        lines.end()
        yield ReceivedRequests(lines.count, lines.size, sink.sha256(), sink)


class _Lines:
    """Turns the requests of a body into lines of an input file."""

    def __init__(self, sink: StoreSink, max_requests: int, max_line_bytes: int) -> None:
        self._sink = sink
        self._max_requests = max_requests
        self._items = JsonItems("requests", max(max_line_bytes - _WRAPPING, 1))
        self._custom_ids: set[str] = set()
        self.size = 0

    @property
    def count(self) -> int:
        return len(self._custom_ids)

    def write(self, data: bytes) -> None:
        try:
            lines = b"".join(map(self._line, self._items.feed(data)))
        except TooLongError as error:
            raise ApiError(413, f"A request of the batch is too large: {error}.") from None
        except MalformedItemsError as error:
            raise _malformed(str(error)) from None
        self._sink.write(lines)
        self.size += len(lines)

    def end(self) -> None:
        try:
            self._items.end()
            _decode_rest(bytes(self._items.rest))
        except msgspec.ValidationError:
            raise _bad("requests", "Field required, a list of requests") from None
        except (MalformedItemsError, ValueError, RecursionError) as error:
            raise _malformed(str(error)) from None
        if self._items.arrays != 1:
            raise _bad("requests", "Field occurs more than once")
        if not self.count:
            raise _bad("requests", "List should have at least 1 item")

    def _line(self, item: bytes) -> bytes:
        param = f"requests.{self.count}"
        if self.count == self._max_requests:
            raise _bad("requests", f"List should have at most {self._max_requests} items")
        request = _read(item, param)
        if request.custom_id in self._custom_ids:
            raise _bad(f"{param}.custom_id", f"'{request.custom_id}' is that of another request of the batch")
        self._custom_ids.add(request.custom_id)
        # JSON escapes line breaks within strings, so the remaining ones are white space and may be replaced.
        params = escaped(bytes(request.params).replace(b"\n", b" ").replace(b"\r", b" "))
        return b'{"custom_id":"%b","method":"POST","url":"%b","body":%b}\n' % (
            request.custom_id.encode(),
            MESSAGES_ENDPOINT.encode(),
            params,
        )


def _read(item: bytes, param: str) -> _Item:
    """Return a decoded request.

    Raises:
        ApiError: the request is invalid, or cannot be sent in a batch.
    """
    try:
        item.decode()
        request = _decode_item(item)
        params = _decode_params(request.params)
    except msgspec.ValidationError as error:
        raise _bad(param, f"Input should be an object with a custom_id and params ({error})") from None
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{param}: {error}") from None
    if not _CUSTOM_ID.fullmatch(request.custom_id):
        raise _bad(f"{param}.custom_id", "String should match pattern '^[a-zA-Z0-9_-]{1,64}$'")
    for name, first_bytes, kind in _REQUIRED:
        raw = bytes(memoryview(getattr(params, name))[:1])
        if not raw:
            raise _bad(f"{param}.params.{name}", "Field required")
        if raw not in first_bytes:
            raise _bad(f"{param}.params.{name}", f"Input should be a valid {kind}")
    if bytes(params.stream) not in _NO_STREAM:
        raise _bad(f"{param}.params.stream", "Streaming is not supported in batches")
    if is_deeper(item, MAX_DEPTH):
        raise _bad(f"{param}.params", f"At most {MAX_DEPTH} levels of nested lists and objects are allowed")
    return request


def _bad(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}.")


def _malformed(why: str) -> ApiError:
    return ApiError(400, f"The request body is not valid JSON: {why}.")
