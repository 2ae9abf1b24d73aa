"""Reads committed lines of a shard, whether it is running or finished."""

from __future__ import annotations

from collections.abc import Iterator

from activities.records.shard_keys import ShardRef
from activities.results.shard_log import RangeReader, look_up, open_result
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from workflows.types import ShardResult


def lines_of_shard(store: ObjectStore, shard: ShardRef, wanted: list[int]) -> Iterator[bytes]:
    """Yield the bytes of committed lines. Args: ``wanted`` are the numbers of these lines, in input order.

    Raises:
        ObjectNotFoundError: a line is not in the store any more.
    """
    if not wanted:
        return
    found = look_up(store, shard)
    if not isinstance(found, ShardResult):
        for line in wanted:
            if line not in found.ranges:
                raise ObjectNotFoundError(f"line {line} of {shard.batch.batch_id}")
        reader = RangeReader(store, (found.ranges[line] for line in wanted))
        for line in wanted:
            yield b"".join(reader.read(found.body(line)))
        return
    reader = open_result(store, shard, found.attempt)
    left = iter(wanted)
    line = next(left, None)
    for record in reader.records():
        if record.line == line:
            yield b"".join(reader.line())
            line = next(left, None)
            if line is None:
                return
    raise ObjectNotFoundError(f"line {line} of {shard.batch.batch_id}")
