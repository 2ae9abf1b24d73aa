"""The bytes of a stored file as an answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from urllib.parse import quote

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from activities.catalog import FileRecord
from activities.storage import StoreError

_LONGEST_NAME = 150


class Reader:
    """The chunks of an object, read in threads."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()

    def next(self) -> bytes:
        """The next chunk; empty at the end."""
        with self._lock:
            return next(self._chunks, b"")

    def close(self) -> None:
        """Let go of what is open, once a read that is under way in another thread has ended."""
        with self._lock:
            # An iterator is all that stores promise, but what holds a file open can be closed.
            close: Callable[[], None] | None = getattr(self._chunks, "close", None)
            if close:
                close()


class Download(StreamingResponse):
    """A file whose first chunk is read already, so that a store that cannot be read is still a 503."""

    def __init__(self, record: FileRecord, first: bytes, reader: Reader) -> None:
        headers = {"Content-Length": str(record.bytes), "Content-Disposition": disposition(record.filename)}
        content = _content(first, reader, record.bytes)
        super().__init__(content, headers=headers, media_type="application/octet-stream")
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Left to the garbage collector, abandoned downloads would pile up open files. Not awaited: where the
            # client has gone this task is cancelled.
            asyncio.get_running_loop().run_in_executor(None, self._reader.close)


async def _content(first: bytes, reader: Reader, size: int) -> AsyncIterator[bytes]:
    """The chunks, or an exception. Ending early and cleanly would pass for the whole file."""
    sent = 0
    chunk = first
    while chunk:
        sent += len(chunk)
        yield chunk
        chunk = await asyncio.to_thread(reader.next)
    if sent != size:
        raise StoreError(f"a file of {size} bytes ended after {sent}")


def disposition(filename: str) -> str:
    """A header that no file name can break out of. Its last part only, short enough for every proxy."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(character for character in name if character.isprintable())[-_LONGEST_NAME:] or "file"
    plain = "".join(character if character.isascii() and character != '"' else "_" for character in name)
    header = f'attachment; filename="{plain}"'
    if not name.isascii():
        header += f"; filename*=UTF-8''{quote(name, safe='')}"
    return header
