"""Reads the requests of a shard from the input."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from temporalio.exceptions import ApplicationError

from activities.input.jsonl import TOO_LONG, Line, custom_id_of, parse_line, read_lines, too_long
from activities.input.request_rules import model_of
from activities.records import keys
from activities.records.catalog import Catalog
from activities.records.read_ahead import read_ahead
from activities.records.sending_order import LinePlace, joined
from activities.results.output_lines import OutputLines
from activities.results.shard_log import ShardLog
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from workflows.types import RunRequestsInput


class ShardRequest(NamedTuple):
    custom_id: bytes
    body: bytes
    model: str


def read_requests(store: ObjectStore, task: RunRequestsInput, log: ShardLog) -> dict[int, ShardRequest]:
    """Return the requests of the shard without a committed answer, by line number and in sending order.

    Requests in lines that are too long are added to ``log`` as error lines instead.

    Raises:
        ApplicationError: the batch's copy of its input is gone. It is not retryable.
    """
    requests: dict[int, ShardRequest] = {}
    try:
        for line in _lines(store, task, log):
            if log.has(line.number):
                continue
            if line.data is None:
                message = too_long(line, task.max_line_bytes)
                lines = OutputLines(task.batch_id)
                refused = lines.refused(line.number, custom_id_of(line) or b"null", TOO_LONG, message)
                log.add(line.number, "error", refused)
                continue
            parsed = parse_line(line.data)
            model = task.model or model_of(parsed.body) or ""
            requests[line.number] = ShardRequest(bytes(parsed.custom_id), bytes(parsed.body), model)
    except ObjectNotFoundError as error:
        message = f"{error} is no longer in the store, and the requests of this shard cannot be read without it"
        raise ApplicationError(message, type="ObjectsGone", non_retryable=True) from None
    return requests


def _lines(store: ObjectStore, task: RunRequestsInput, log: ShardLog) -> Iterator[Line]:
    key, shard = keys.input_key(task.ref), task.shard

    def read(place: LinePlace) -> list[Line]:
        chunks = store.stream(key, place.offset, place.length)
        return list(read_lines(chunks, task.max_line_bytes, first_line=place.line))

    if not task.has_order:
        chunks = store.stream(key, shard.offset, shard.length)
        return read_lines(chunks, task.max_line_bytes, first_line=shard.first_line)
    places = Catalog(store).get_places(task.ref, task.cut, shard)
    wanted = joined(place for place in places if not log.has(place.line))
    return chain.from_iterable(read_ahead(read, wanted, store.reads_at_once))
