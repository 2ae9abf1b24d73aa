"""Makes and reads lines of the output and error file, as bytes.

The engine's body and the client's ``custom_id`` are copied unchanged, except that characters beyond ASCII are escaped:
many readers also split lines at U+2028, U+2029 and U+0085, and would see more lines than there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from activities.raw_json import escaped
from activities.upstreams.answers import Answer
from workflows.ids import request_id_prefix
from workflows.types import MissingReason

_MESSAGES: Final = {
    MissingReason.EXPIRED: "This request could not be executed before the completion window expired.",
    MissingReason.CANCELLED: "This request was not executed because the batch was cancelled.",
    MissingReason.FAILED: "This request was not executed because the batch failed.",
}


_ID: Final = re.compile(rb'\{"id":"batch_req_[0-9a-f]{24}([0-9a-f]{8})"')


def line_number(data: bytes) -> int:
    """Return the number of the input line that a line of a result file answers.

    Raises:
        ValueError: ``data`` is not the beginning of a line of a result file.
    """
    found = _ID.match(data)
    if not found:
        raise ValueError("not a line of a result file")
    return int(found[1], 16)


def result_lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a result file, each preceded by the number of the input line that it answers.

    Raises:
        ValueError: a line is not one of a result file.
    """
    held: list[bytes] = []
    for chunk in chunks:
        start = 0
        while end := chunk.find(b"\n", start) + 1:
            line = b"".join((*held, chunk[start:end]))
            yield line_number(line), line
            held, start = [], end
        held.append(chunk[start:])


def _encode(value: object) -> bytes:
    return escaped(msgspec.json.encode(value))


class OutputLines:
    """Makes the lines of one batch. The id of a request's line is always the same."""

    def __init__(self, batch_id: str, *, strict: bool = False) -> None:
        """Args: ``strict`` makes ``error`` null if there is an HTTP response, as OpenAI does."""
        self._prefix = request_id_prefix(batch_id)
        self._strict = strict

    def success(self, line: int, custom_id: bytes, answer: Answer) -> bytes:
        return b"%b,%b,%b}\n" % (self._head(line, custom_id), self._response(line, answer), b'"error":null')

    def error(self, line: int, custom_id: bytes, answer: Answer) -> bytes:
        """Return a line for a refusal or for the last of too many failures.

        Its ``response`` is null if the answer has no body.
        """
        response = self._response(line, answer) if answer.body else b'"response":null'
        if self._strict and answer.body:
            return b'%b,%b,"error":null}\n' % (self._head(line, custom_id), response)
        return self._with_error(line, custom_id, response, answer.code, answer.message)

    def refused(self, line: int, custom_id: bytes, code: str, message: str) -> bytes:
        """Return a line for a request that was not sent."""
        return self._with_error(line, custom_id, b'"response":null', code, message)

    def missing(self, line: int, custom_id: bytes, reason: MissingReason) -> bytes:
        return self._with_error(line, custom_id, b'"response":null', reason.value, _MESSAGES[reason])

    def _with_error(self, line: int, custom_id: bytes, response: bytes, code: str, message: str) -> bytes:
        error = _encode({"code": code, "message": message})
        return b'%b,%b,"error":%b}\n' % (self._head(line, custom_id), response, error)

    def _head(self, line: int, custom_id: bytes) -> bytes:
        return b'{"id":"batch_req_%b","custom_id":%b' % (self._id(line), escaped(custom_id))

    def _response(self, line: int, answer: Answer) -> bytes:
        request_id = _encode(answer.request_id) if answer.request_id else b'"req_%b"' % self._id(line)
        return b'"response":{"status_code":%d,"request_id":%b,"body":%b}' % (answer.status, request_id, answer.body)

    def _id(self, line: int) -> bytes:
        return f"{self._prefix}{line:08x}".encode()
