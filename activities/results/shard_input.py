"""The requests of a shard, as its input has them."""

from __future__ import annotations

from typing import NamedTuple

from temporalio.exceptions import ApplicationError

from activities.input.jsonl import TOO_LONG, custom_id_of, parse_line, read_lines, too_long
from activities.input.request_rules import model_of
from activities.records import keys
from activities.records.catalog import Catalog
from activities.records.cuts import Cut
from activities.results.output_lines import OutputLines
from activities.results.shard_log import ShardLog
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from workflows.types import RunRequestsInput


class ShardRequest(NamedTuple):
    custom_id: bytes
    body: bytes
    model: str


def read_requests(store: ObjectStore, task: RunRequestsInput, log: ShardLog) -> dict[int, ShardRequest]:
    """The requests of the shard that have no committed answer, by line number.

    Raises:
        ApplicationError: the batch's copy of its input is gone, and trying again brings nothing back.
    """
    shard = task.shard
    cut: Cut | None = None
    try:
        chunks = store.stream(keys.input_key(task.tenant, task.batch_id), shard.offset, shard.length)
        if task.is_mixed and shard.requests > 1:  # of one request, the shard is that line alone
            cut = Catalog(store).get_cut(task.tenant, task.batch_id, task.cut)
    except ObjectNotFoundError as error:
        message = f"{error} is no longer in the store, and the requests of this shard cannot be read without it"
        raise ApplicationError(message, type="ObjectsGone", non_retryable=True) from None
    requests: dict[int, ShardRequest] = {}
    for line in read_lines(chunks, task.max_line_bytes, first_line=shard.first_line):
        if log.has(line.number):
            continue
        if line.data is None:
            if not cut or cut.upstream(None) == shard.upstream:
                message = too_long(line, task.max_line_bytes)
                lines = OutputLines(task.batch_id)
                refused = lines.refused(line.number, custom_id_of(line) or b"null", TOO_LONG, message)
                log.add(line.number, "error", refused)
            continue
        parsed = parse_line(line.data)
        model = task.model or model_of(parsed.body)
        if cut and cut.upstream(model) != shard.upstream:
            continue
        requests[line.number] = ShardRequest(bytes(parsed.custom_id), bytes(parsed.body), model or "")
    return requests
