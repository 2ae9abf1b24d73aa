"""Answers that other cuts of the same input have committed: the workflow of their batch was reset, and its input was
then cut otherwise. They are carried over by line number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from activities.records import shard_keys
from activities.records.catalog import Catalog
from activities.records.shard_keys import ShardRef
from activities.results.records import RecordReader
from activities.results.shard_log import HOLD_BYTES, Committed, RangeReader, ShardLog, look_up
from activities.store.object_store import ObjectStore
from workflows.types import Shard, ShardResult


def look_up_elsewhere(store: ObjectStore, ref: ShardRef, shard: Shard) -> Committed | None:
    """What other cuts of the same input have committed of the lines of a shard, and perhaps of lines beside them;
    ``None`` if there is no other cut.

    The workflow of the batch was reset, and its input was then cut otherwise.
    """
    found = Committed({}, {}, {}, [], {}, [])
    files = Catalog(store)
    others = [cut for cut in files.cuts(ref.tenant, ref.batch_id) if cut != ref.cut]
    if not others:
        return None
    of_input = files.get_cut(ref.tenant, ref.batch_id, ref.cut).input
    for digest in others:
        cut = files.get_cut(ref.tenant, ref.batch_id, digest)
        if cut.input != of_input:
            continue
        for number, other in enumerate(cut.shards):
            if other.offset < shard.offset + shard.length and shard.offset < other.offset + other.length:
                _take_all(store, ref._replace(cut=digest, number=number), found)
    return found


def _take_all(store: ObjectStore, shard: ShardRef, found: Committed) -> None:
    committed = look_up(store, shard)
    if isinstance(committed, ShardResult):
        key = shard_keys.result_key(shard, committed.attempt)
        reader = RecordReader(store.stream(key))
        reader.shard_head()
        found.take(key, reader)
        return
    for line, record in committed.records.items():
        if line not in found.records:
            found.records[line], found.ranges[line] = record, committed.ranges[line]
    for line, tried in committed.tried.items():
        found.tried[line] = tried.merged(found.tried.get(line, tried))
    found.waits.extend(committed.waits)


async def carry_over(store: ObjectStore, ref: ShardRef, shard: Shard, log: ShardLog, lines: Collection[int]) -> None:
    """Commit to the log of a shard, as answers of its own cut, what other cuts have committed of these lines."""
    found = await asyncio.to_thread(look_up_elsewhere, store, ref, shard)
    if found is None:
        return
    wanted = sorted(line for line in found.records if line in lines)
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
        if line in lines and line not in found.records:
            log.note_tries(line, tried)
    log.waits.take_over(found.waits)
    await log.commit()
