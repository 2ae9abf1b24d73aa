"""Carries over, by line number, answers that were committed under other cuts of the same input. There are other cuts if
the workflow of the batch was reset and the input was then cut differently.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from activities.records import shard_keys
from activities.records.catalog import Catalog
from activities.records.cuts import Cut
from activities.records.shard_keys import ShardRef
from activities.results.records import RecordReader
from activities.results.shard_log import HOLD_BYTES, ByteRange, Committed, RangeReader, ShardLog, look_up, open_result
from activities.results.tries import Tries
from activities.store.object_store import ObjectStore, StoreError
from workflows.events import PastWait
from workflows.ids import BatchRef
from workflows.types import ShardResult

REMEMBERED: Final = 4
"""Maximum number of runs for which a process remembers where answers of other cuts are, some 250 bytes for each."""

SETTLE_SECONDS: Final = 3.0
"""Seconds in which the shards of a run that was terminated, as by a reset, learn of it and commit their answers."""


def other_cuts(store: ObjectStore, ref: BatchRef, digest: str) -> Iterator[tuple[str, Cut]]:
    """Yield the other cuts of the same input, each with its digest."""
    files = Catalog(store)
    others = [cut for cut in files.cuts(ref) if cut != digest]
    of_input = files.get_cut(ref, digest).input if others else ""
    for other in others:
        cut = files.get_cut(ref, other)
        if cut.input == of_input:
            yield other, cut


class _Elsewhere(NamedTuple):
    """What other cuts have committed, by line."""

    ranges: dict[int, ByteRange]
    tried: dict[int, Tries]
    waits: list[PastWait]


def _look_up_elsewhere(store: ObjectStore, ref: ShardRef) -> _Elsewhere:
    found = _Elsewhere({}, {}, [])
    for digest, cut in other_cuts(store, ref.batch, ref.cut):
        for number in range(len(cut.shards)):
            shard = ref._replace(cut=digest, number=number)
            committed = look_up(store, shard)
            if isinstance(committed, ShardResult):
                attempt, committed = committed.attempt, Committed()
                committed.take(shard_keys.result_key(shard, attempt), open_result(store, shard, attempt))
            for line, where in committed.ranges.items():
                found.ranges.setdefault(line, where)
            for line, tried in committed.tried.items():
                found.tried[line] = tried.merged(found.tried.get(line, tried))
            found.waits.extend(committed.waits)
    return found


class _Look(NamedTuple):
    """A look of a run at what other cuts have committed."""

    found: asyncio.Future[_Elsewhere]
    first_at: float
    """When the first look of this run began, by the clock of the event loop."""
    is_early: bool
    """Whether shards of the run before may commit more after this look."""


class OtherCuts:
    """Where the answers of other cuts are, for the runs of a process. With another sending order, any shard may need
    answers from any other one, so all are looked up together: once for each run of a workflow, and before that at each
    shard as long as shards of the run before may still commit.
    """

    def __init__(self) -> None:
        self._looks: OrderedDict[str, _Look] = OrderedDict()

    async def carry_over(
        self, store: ObjectStore, run_id: str, ref: ShardRef, log: ShardLog, lines: Collection[int]
    ) -> None:
        """Commit what other cuts have committed of these lines to the log of a shard, as answers of its own cut."""
        look = self._looks.get(run_id)
        if not look or (look.is_early and look.found.done()):
            look = self._look(store, run_id, ref, look)
        try:
            await self._carry(store, await asyncio.shield(look.found), log, lines)
        except StoreError:
            self._looks.pop(run_id, None)  # a part may have vanished because its shard was finished: look again
            raise

    def _look(self, store: ObjectStore, run_id: str, ref: ShardRef, earlier: _Look | None) -> _Look:
        now = asyncio.get_running_loop().time()
        first_at = earlier.first_at if earlier else now
        found = asyncio.ensure_future(asyncio.to_thread(_look_up_elsewhere, store, ref))
        look = self._looks[run_id] = _Look(found, first_at, now < first_at + SETTLE_SECONDS)
        found.add_done_callback(lambda _: self._looked(run_id, look))
        return look

    def _looked(self, run_id: str, look: _Look) -> None:
        """Forget looks that failed or found nothing, as those of nearly all runs do, and the oldest of the others."""
        if look.found.cancelled() or look.found.exception() or not any(look.found.result()):
            if self._looks.get(run_id) is look:
                del self._looks[run_id]
        elif len(self._looks) > REMEMBERED:
            self._looks.popitem(last=False)

    async def _carry(self, store: ObjectStore, found: _Elsewhere, log: ShardLog, lines: Collection[int]) -> None:
        wanted = sorted(line for line in lines if line in found.ranges)
        reader = RangeReader(store, [found.ranges[line] for line in wanted])
        size = 0
        for line in wanted:
            data = b"".join(await asyncio.to_thread(list, reader.read(found.ranges[line])))
            records = RecordReader(iter((data,)))
            record = next(records.records())
            log.add(line, record.kind, b"".join(records.line()), record.usage)
            size += len(data)
            if size > HOLD_BYTES:
                await log.commit()
                size = 0
        for line in (found.tried.keys() & set(lines)) - found.ranges.keys():
            log.note_tries(line, found.tried[line])
        log.waits.take_over(found.waits)
        await log.commit()
