"""Multipart uploads, streamed into the store.

Starlette's parser spools each file to disk and calls the route after the last byte, so that a 200 MB upload would be
written twice. Here, each chunk goes to the store as it arrives, at most about a megabyte is in memory, and nothing is
visible before :meth:`Upload.commit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from activities.store.object_store import CHUNK, ObjectStore
from api.http.bodies import Body, too_large
from api.http.errors import ApiError, missing_parameter
from api.http.store_sink import StoreSink, in_thread, sink_of

_MAX_PARTS = 100
_MAX_TEXT = 64 * 1024
FORM_ALLOWANCE = 256 * 1024
"""Bytes that a form may have in addition to its file: text fields, part headers and boundaries."""
_NO_NAME = "upload"


@dataclass(frozen=True)
class Upload:
    """A form that has arrived completely. Its file is discarded unless it is committed."""

    fields: dict[str, str]
    filename: str
    size: int
    newlines: int
    is_open: bool
    """Whether bytes follow the file's last newline."""
    sha256: str
    _sink: StoreSink

    @property
    def lines(self) -> int:
        """Number of lines of the file. The last one may lack its line end."""
        return self.newlines + self.is_open

    async def commit(self) -> None:
        """Make the file visible in the store."""
        await in_thread(self._sink.commit)


@contextlib.asynccontextmanager
async def receive_upload(
    request: Request,
    store: ObjectStore,
    key: str,
    max_bytes: int,
    arrived: Callable[[int], None],
    field: str = "file",
) -> AsyncGenerator[Upload]:
    """Stream the file of a form to the object ``key``. A block that ends without a commit leaves nothing behind.

    ``arrived`` is called with the bytes of the file so far, and may raise an exception to stop the transfer.
    ``field`` is the name of the form field that holds the file.

    Raises:
        ApiError: the form is malformed or above a limit.
        ClientDisconnect: the client disconnected before the end.
        StoreError: the store cannot be used.
    """
    form = _Form(field, max_bytes)
    body = _body(request, max_bytes)
    async with sink_of(body, store, key) as sink:
        parser = _parser(request, form)
        async for chunk in body.chunks():
            _parse(parser, chunk)
            if form.has_file and len(form.data) >= CHUNK:
                arrived(form.size)
                await in_thread(sink.write, form.take())
        if not form.ended:
            raise _malformed("it ends early")
        if not form.has_file:
            raise missing_parameter(field)
        await in_thread(sink.write, form.take())
        yield Upload(form.texts(), form.filename, form.size, form.newlines, form.is_open, sink.sha256(), sink)


async def refuse_upload(request: Request, max_bytes: int) -> None:
    """Read a form that will be refused, within bounds: see :meth:`api.http.bodies.Body.drain`."""
    await _body(request, max_bytes).drain()


def _body(request: Request, max_bytes: int) -> Body:
    return Body(request, max_bytes, FORM_ALLOWANCE)


class _Form:
    """Collects what the parser finds, which calls the ``on_`` methods."""

    def __init__(self, field: str, max_bytes: int) -> None:
        self._field = field
        self._max_bytes = max_bytes
        self._parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._texts: dict[str, bytearray] = {}
        self._text_size = 0
        self._take: Callable[[bytes], None] = self._ignore
        self.data = bytearray()
        """Bytes of the file that have not been taken yet."""
        self.size = 0
        """Bytes of the file that have arrived so far."""
        self.newlines = 0
        self.is_open = False
        self.filename = _NO_NAME
        self.has_file = False
        self.ended = False

    def take(self) -> bytes:
        data = bytes(self.data)
        self.data.clear()
        return data

    def texts(self) -> dict[str, str]:
        return {name: text.decode("utf-8", "replace") for name, text in self._texts.items()}

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _malformed(f"it has more than {_MAX_PARTS} parts")
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed("a part has no name")
        name = _decoded(options[b"name"])
        if name == self._field:
            if self.has_file:
                raise ApiError(400, f"A form may hold only one '{name}'.", param=name)
            self.has_file = True
            self.filename = _decoded(options.get(b"filename", b"")) or _NO_NAME
            self._take = self._take_file
        elif b"filename" in options:
            self._take = self._ignore
        else:
            text = self._texts[name] = bytearray()
            self._take = lambda data: self._take_text(text, data)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._take(data[start:end])

    def on_end(self) -> None:
        self.ended = True

    def _take_file(self, data: bytes) -> None:
        self.size += len(data)
        self.newlines += data.count(b"\n")
        if data:
            self.is_open = not data.endswith(b"\n")
        if self.size > self._max_bytes:
            raise too_large(self._max_bytes)
        self.data += data

    def _take_text(self, text: bytearray, data: bytes) -> None:
        self._text_size += len(data)
        if self._text_size > _MAX_TEXT:
            raise _malformed(f"its text fields are larger than {_MAX_TEXT} bytes")
        text += data

    def _ignore(self, data: bytes) -> None:
        pass


def _parser(request: Request, form: _Form) -> MultipartParser:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise ApiError(400, "Invalid body: expected a form of type multipart/form-data.")
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed("its Content-Type has no boundary")
    try:
        # The parser limits the number and the length of a part's headers.
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_end": form.on_end,
            },
        )
    except FormParserError as error:
        raise _malformed("its boundary is too long") from error


def _parse(parser: MultipartParser, chunk: bytes) -> None:
    try:
        parser.write(chunk)
    except FormParserError as error:
        raise _malformed("a boundary or a header is not where it should be") from error


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _malformed(reason: str) -> ApiError:
    return ApiError(400, f"Invalid multipart form: {reason}.")
