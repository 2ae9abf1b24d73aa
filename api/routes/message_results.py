"""The results of a message batch: the lines of its result files in the format of Anthropic's API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from activities.raw_json import escaped
from activities.records.catalog import Catalog
from activities.records.keys import content_key
from activities.store.object_store import ObjectNotFoundError, StoreError
from api.http.anthropic_errors import anthropic_error
from workflows.types import BatchPhase, BatchRecord, MissingReason

_ABSENT: Final = msgspec.Raw(b"")
_UNANSWERED: Final = {
    MissingReason.EXPIRED.value: b'{"type":"expired"}',
    MissingReason.CANCELLED.value: b'{"type":"canceled"}',
}
_TIMED_OUT: Final = "request_timeout"


class _Response(msgspec.Struct):
    status_code: int
    request_id: str | None
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Line(msgspec.Struct):
    custom_id: msgspec.Raw
    response: _Response | None
    error: _Error | None


class _InputLine(msgspec.Struct):
    custom_id: msgspec.Raw = _ABSENT


class _Detail(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Refusal(msgspec.Struct):
    type: str = ""
    error: _Detail | str = ""


_decode = msgspec.json.Decoder(_Line).decode
_decode_input = msgspec.json.Decoder(_InputLine).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


def open_results(catalog: Catalog, record: BatchRecord) -> Iterator[bytes]:
    """Return the results of a batch that has ended, some lines at a time. The call and the iteration block.

    Raises:
        ObjectNotFoundError: a file that the results are made from was deleted or has expired.
        StoreError: during the iteration, the store cannot be used, or the files do not hold one result per request.
    """
    spec, status = record.spec, record.status
    file_ids = list(filter(None, (status.output_file_id, status.error_file_id)))
    total, convert = status.counts.total, result_of
    if not file_ids:
        # The batch ended before anything was sent, so that only its input file lists its requests.
        file_ids, total, convert = [spec.input_file_id], spec.inline_requests, _unsent(record)
    for file_id in file_ids:
        if catalog.get_file(spec.tenant, file_id).is_expired(time.time()):
            raise ObjectNotFoundError(file_id)
    return _results(catalog, [content_key(spec.tenant, file_id) for file_id in file_ids], convert, total)


def _results(catalog: Catalog, keys: list[str], convert: Callable[[bytes, int], bytes], total: int) -> Iterator[bytes]:
    count = 0
    for key in keys:
        for number, lines in _lines(catalog.store.stream(key)):
            converted = [convert(line, number + index) for index, line in enumerate(lines)]
            count += len(converted)
            yield b"".join(converted)
    if total and count != total:
        raise StoreError(f"the result files have {count} lines for {total} requests")


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the lines that end in each chunk, with the number of the first of them, counted from 1."""
    number, held = 1, [b""]
    for chunk in chunks:
        if b"\n" not in chunk:
            held.append(chunk)
            continue
        *lines, rest = b"".join([*held, chunk]).split(b"\n")
        yield number, lines
        number += len(lines)
        held = [rest]
    if last := b"".join(held):
        yield number, [last]


def result_of(line: bytes, _number: int = 0) -> bytes:
    """Return the result of a request, converted from its line in the output or error file."""
    read = _decode(line)
    response, error = read.response, read.error
    if response and not error and 200 <= response.status_code < 300:
        return _result(read.custom_id, b'{"type":"succeeded","message":%b}' % response.body)
    if not response and error and (unanswered := _UNANSWERED.get(error.code)):
        return _result(read.custom_id, unanswered)
    return _result(read.custom_id, b'{"type":"errored","error":%b}' % _error(response, error))


def _error(response: _Response | None, error: _Error | None) -> bytes:
    refusal = _refusal(response.body) if response else _Refusal()
    detail = refusal.error if isinstance(refusal.error, _Detail) else _Detail(message=refusal.error)
    if response and refusal.type == "error" and detail.type:
        return bytes(response.body)  # the upstream answers in Anthropic's format
    status = response.status_code if response else 504 if error and error.code == _TIMED_OUT else 500
    message = error.message if error else detail.message or f"The inference server answered HTTP {status}."
    return _encoded(anthropic_error(status, message, response.request_id if response else None))


def _refusal(body: msgspec.Raw) -> _Refusal:
    try:
        return _decode_refusal(body)
    except msgspec.DecodeError:
        return _Refusal()


def _unsent(record: BatchRecord) -> Callable[[bytes, int], bytes]:
    """Return a function that converts an input line to its result, for a batch that ended before anything was sent."""
    status = record.status
    same = {BatchPhase.EXPIRED: MissingReason.EXPIRED, BatchPhase.CANCELLED: MissingReason.CANCELLED}.get(status.phase)
    own = {error.line: error.message for error in status.errors if error.line is not None}
    first = next((error.message for error in status.errors), "")

    def convert(line: bytes, number: int) -> bytes:
        try:
            custom_id = _decode_input(line).custom_id
        except (ValueError, RecursionError):
            custom_id = _ABSENT
        if same:
            return _result(custom_id, _UNANSWERED[same.value])
        message = own.get(number) or f"This request was not executed because the batch failed: {first}"
        error = _encoded(anthropic_error(400, message, None))
        return _result(custom_id, b'{"type":"errored","error":%b}' % error)

    return convert


def _encoded(value: object) -> bytes:
    return escaped(msgspec.json.encode(value))


def _result(custom_id: msgspec.Raw, result: bytes) -> bytes:
    return b'{"custom_id":%b,"result":%b}\n' % (escaped(bytes(custom_id)) or b'""', result)
