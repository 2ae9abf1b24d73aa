"""Carries over, by line number, answers that were committed under other cuts of the same input. There are other cuts if
the workflow of the batch was reset and the input was then cut differently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator

from activities.records import shard_keys
from activities.records.catalog import Catalog
from activities.records.cuts import Cut
from activities.records.shard_keys import ShardRef
from activities.results.records import RecordReader
from activities.results.shard_log import HOLD_BYTES, Committed, RangeReader, ShardLog, look_up
from activities.store.object_store import ObjectStore
from workflows.ids import BatchRef
from workflows.types import Shard, ShardResult


def other_cuts(store: ObjectStore, ref: BatchRef, digest: str) -> Iterator[tuple[str, Cut]]:
    """Yield the other cuts of the same input, each with its digest."""
    files = Catalog(store)
    others = [cut for cut in files.cuts(ref) if cut != digest]
    of_input = files.get_cut(ref, digest).input if others else ""
    for other in others:
        cut = files.get_cut(ref, other)
        if cut.input == of_input:
            yield other, cut


def _look_up_elsewhere(
    store: ObjectStore, ref: ShardRef, shard: Shard, lines: Collection[int], *, has_order: bool
) -> Committed:
    """Return what other cuts have committed of these lines of a shard."""
    found = Committed({}, {}, {}, [], {}, [])
    for digest, cut in other_cuts(store, ref.batch, ref.cut):
        for number, other in enumerate(cut.shards):
            overlap = other.offset < shard.offset + shard.length and shard.offset < other.offset + other.length
            if overlap or has_order or cut.order:  # with a sending order, any shard may have the lines
                _take(store, ref._replace(cut=digest, number=number), found, lines)
    return found


def _take(store: ObjectStore, shard: ShardRef, found: Committed, lines: Collection[int]) -> None:
    committed = look_up(store, shard)
    if isinstance(committed, ShardResult):
        key = shard_keys.result_key(shard, committed.attempt)
        reader = RecordReader(store.stream(key))
        reader.shard_head()
        found.take(key, reader, lines)
        return
    for line, record in committed.records.items():
        if line in lines and line not in found.records:
            found.records[line], found.ranges[line] = record, committed.ranges[line]
    for line, tried in committed.tried.items():
        if line in lines:
            found.tried[line] = tried.merged(found.tried.get(line, tried))
    found.waits.extend(committed.waits)


async def carry_over(
    store: ObjectStore, ref: ShardRef, shard: Shard, log: ShardLog, lines: Collection[int], *, has_order: bool = False
) -> None:
    """Commit what other cuts have committed of these lines to the log of a shard, as answers of its own cut.

    Args: see :attr:`workflows.types.RunRequestsInput.has_order` for ``has_order``.
    """
    found = await asyncio.to_thread(_look_up_elsewhere, store, ref, shard, lines, has_order=has_order)
    wanted = sorted(found.records)
    reader = RangeReader(store, (found.ranges[line] for line in wanted))
    size = 0
    for line in wanted:
        record = found.records[line]
        data = b"".join(await asyncio.to_thread(list, reader.read(found.body(line))))
        log.add(line, record.kind, data, record.usage)
        size += len(data)
        if size > HOLD_BYTES:
            await log.commit()
            size = 0
    for line, tried in found.tried.items():
        if line not in found.records:
            log.note_tries(line, tried)
    log.waits.take_over(found.waits)
    await log.commit()
