"""Responses with the content of a stored file."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, NamedTuple
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from activities.records.catalog import FileRecord
from activities.store.object_store import StoreError
from api.http.errors import ApiError

_MAX_NAME_LENGTH = 150
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Reader:
    """Reads the chunks of an object. All methods but ``chunks`` block, and may be called from several threads."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()

    def next(self) -> bytes:
        """Return the next chunk, which is empty at the end of the object."""
        with self._lock:
            return next(self._chunks, b"")

    async def chunks(self, first: bytes) -> AsyncIterator[bytes]:
        """Yield the chunk ``first``, which was read before, and those that follow."""
        chunk = first
        while chunk:
            yield chunk
            chunk = await asyncio.to_thread(self.next)

    def close(self) -> None:
        """Close the object, after a read that is running in another thread has ended."""
        with self._lock:
            # Stores only promise an iterator, but one that holds a file open has a method to close it.
            close: Callable[[], None] | None = getattr(self._chunks, "close", None)
            if close:
                close()


class Span(NamedTuple):
    """A range of a file's bytes."""

    start: int
    length: int


def entity_tag(record: FileRecord) -> str:
    """Return the ETag of a file, which is its id, since the content of an id never changes."""
    return f'"{record.id}"'


def span_of(record: FileRecord, headers: Headers) -> Span | None:
    """Return the range of a file that a request asks for, or ``None`` for the whole file.

    The whole file is sent for several ranges, a malformed range, and a range of another version (``If-Range``).

    Raises:
        ApiError: 416, if the range starts after the end of the file.
    """
    match = _RANGE.fullmatch(headers.get("range", "").strip())
    if not match or headers.get("if-range", entity_tag(record)).strip() != entity_tag(record):
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1, record.bytes) if last else record.bytes
        if last and int(last) < start:
            return None
    elif last:
        start, end = max(record.bytes - int(last), 0), record.bytes
    else:
        return None
    if start >= end:
        text = f"The range starts after the end of the file, which has {record.bytes} bytes."
        raise ApiError(416, text, headers={"Content-Range": f"bytes */{record.bytes}", "ETag": entity_tag(record)})
    return Span(start, end - start)


def is_known(record: FileRecord, headers: Headers) -> bool:
    """Return whether the client already has this content, according to ``If-None-Match``."""
    tags = [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]
    return "*" in tags or entity_tag(record) in tags


def content_headers(record: FileRecord, span: Span | None) -> dict[str, str]:
    headers = {
        "Content-Length": str(span.length if span else record.bytes),
        "Content-Disposition": disposition(record.filename),
        "Accept-Ranges": "bytes",
        "ETag": entity_tag(record),
    }
    if span:
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{record.bytes}"
    return headers


class ReaderResponse(StreamingResponse):
    """A response with the chunks of a reader, which it closes whether or not all of them were sent."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        reader: Reader,
        status_code: int = 200,
        headers: dict[str, str] | None = None,
        media_type: str = "application/octet-stream",
    ) -> None:
        super().__init__(content, status_code, headers, media_type=media_type)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # If the garbage collector had to close them, abandoned downloads would accumulate open files. Not awaited,
            # because this task is cancelled when the client disconnects.
            asyncio.get_running_loop().run_in_executor(None, self._reader.close)


class Download(ReaderResponse):
    """The content of a file, whose first chunk is already read, so that an unreadable store still yields a 503."""

    def __init__(self, record: FileRecord, span: Span | None, first: bytes, reader: Reader) -> None:
        content = _content(first, reader, span.length if span else record.bytes)
        super().__init__(content, reader, 206 if span else 200, content_headers(record, span))


async def _content(first: bytes, reader: Reader, size: int) -> AsyncIterator[bytes]:
    """Yield the chunks, or raise ``StoreError`` if some are missing: a clean end would pass for the whole file."""
    sent = 0
    async for chunk in reader.chunks(first):
        sent += len(chunk)
        yield chunk
    if sent != size:
        raise StoreError(f"{size} bytes of a file ended after {sent}")


def disposition(filename: str) -> str:
    """Return a ``Content-Disposition`` header that no file name can break out of.

    It contains only the last part of the file's path, cut to a length that every proxy accepts.
    """
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(character for character in name if character.isprintable())[-_MAX_NAME_LENGTH:] or "file"
    plain = "".join(character if character.isascii() and character != '"' else "_" for character in name)
    header = f'attachment; filename="{plain}"'
    if not name.isascii():
        header += f"; filename*=UTF-8''{quote(name, safe='')}"
    return header
