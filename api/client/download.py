"""Downloads one file from the server, resuming it with range requests (RFC 9110) after a connection breaks."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, BinaryIO, Final

from openai import APIConnectionError, APIStatusError

from .calls import Calls, Content

_CONTENT_RANGE: Final = re.compile(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+)")


class Download:
    """Writes a file, and resumes where the connection broke if the server still has the same version of the file.

    The local file always holds the beginning of a single version. Unless the entity tag proves that the rest belongs
    to the same version, the download starts over.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._written = 0
        self._total: int | None = None
        """Size of this version in bytes, if the server states it."""
        self._tag = ""
        """Strong entity tag of this version; empty if it has none."""
        self._trusted = True
        """Whether the server has answered range requests correctly so far."""
        self._longest = 0
        self._longest_before = 0

    def advanced(self) -> bool:
        """Return whether the download has got further than ever before since the last call of this method.

        A server that cannot resume, and always breaks the connection at the same position, makes no progress.
        """
        grown = self._longest > self._longest_before
        self._longest_before = self._longest
        return grown

    async def attempt(self, calls: Calls, file_id: str) -> None:
        """Receive the file, or the rest of it.

        Raises:
            openai.APIError: the file is not complete. The next attempt continues from here.
            OSError: the local file cannot be written.
        """
        rest = bool(self._written and self._tag and self._trusted)
        headers = {"Accept-Encoding": "identity"}  # ranges count bytes as they are sent, so compression must be off
        if rest:
            headers |= {"Range": f"bytes={self._written}-", "If-Range": self._tag}
        try:
            async with calls.content(file_id, headers) as content:
                if content.status == 206:
                    self._check_rest(content, rest)
                else:
                    self._begin(content.headers)
                async for chunk in _received(content):
                    self._target.write(chunk)
                    self._written += len(chunk)
                    self._longest = max(self._longest, self._written)
                self._check_end(content)
        except APIStatusError as error:
            if error.status_code != 416 or not rest:
                raise
            _, total = _content_range(error.response.headers)
            if total != self._written:
                self._restart()
                raise APIConnectionError(message="the file has changed", request=error.request) from error

    def _begin(self, headers: Mapping[str, str]) -> None:
        self._restart()
        if headers.get("content-encoding", "identity") != "identity":
            return  # the SDK decodes the content, so neither its length nor a range applies
        length, tag = headers.get("content-length", ""), headers.get("etag", "")
        self._total = int(length) if length.isdecimal() else None
        self._tag = tag if tag.startswith('"') else ""

    def _check_rest(self, content: Content, asked: bool) -> None:
        start, total = _content_range(content.headers)
        same = content.headers.get("etag") == self._tag and self._total in (None, total)
        if not asked or start != self._written or not same:
            self._distrust(content.request, "the server has sent another part of the file than the one asked for")
        self._total = total

    def _check_end(self, content: Content) -> None:
        if self._total is None or self._written == self._total:
            return
        message = f"the file ended after {self._written} of {self._total} bytes"
        if self._written > self._total:
            self._distrust(content.request, message)
        raise APIConnectionError(message=message, request=content.request)

    def _distrust(self, request: Any, message: str) -> None:
        self._trusted = False
        self._restart()
        raise APIConnectionError(message=message, request=request)

    def _restart(self) -> None:
        self._target.seek(0)
        self._target.truncate()
        self._written, self._total, self._tag = 0, None, ""


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return the first byte position and the total size in a ``Content-Range`` header; ``None`` for each if absent."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if not match:
        return None, None
    return int(match[1]) if match[1] else None, int(match[2])


async def _received(content: Content) -> AsyncGenerator[bytes]:
    """Yield the chunks. While a body is streamed, the SDK does not convert the exceptions of its HTTP library."""
    chunks: AsyncIterator[bytes] = content.chunks
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:  # from the iteration only: exceptions that the caller raises do not arrive here
        raise APIConnectionError(request=content.request) from error
