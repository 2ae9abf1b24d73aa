"""The activity that closes a batch: one final record, reported once, and nothing left over."""

from __future__ import annotations

from pathlib import Path

import pytest

from activities.close_batch import CloseBatch
from activities.records import keys
from activities.records.catalog import Catalog
from activities.records.running import RunningBatches
from activities.store.object_store import StoreError
from tests.fakes.worker import BATCH, REF, TENANT, FakeRuns, ShakyStore, activity_environment, make_spec
from workflows.end_types import CloseBatchInput
from workflows.types import BatchPhase, BatchStatus, Counts

SPEC = make_spec(counts_towards_limits=True, webhooks=["default"], output_expires_after=3600)


class Closing:
    def __init__(self, folder: Path) -> None:
        self.store = ShakyStore(str(folder))
        self.catalog = Catalog(self.store)
        self.temporal = FakeRuns()
        self.store.put(keys.input_key(REF), b"input")
        RunningBatches(self.catalog).add(REF, 5)

    async def close(self, outcome: BatchPhase = BatchPhase.COMPLETED, **changes: bool) -> BatchStatus:
        status = BatchStatus(phase=BatchPhase.FINALIZING, outcome=outcome, counts=Counts(total=2, completed=2))
        environment, _ = activity_environment()
        task = CloseBatchInput(spec=SPEC, status=status, **changes)
        return await environment.run(CloseBatch(self.store, self.temporal.runs).close_batch, task)

    def has_input(self) -> bool:
        return keys.input_key(REF) in self.store.list(f"batches/{TENANT}/{BATCH}/")


@pytest.fixture
def it(tmp_path: Path) -> Closing:
    return Closing(tmp_path)


async def test_the_record_is_final_and_the_end_is_reported(it: Closing) -> None:
    status = await it.close()
    assert (status.phase, status.outcome, status.counts.total) == (BatchPhase.COMPLETED, None, 2)
    final = it.catalog.get_final(REF)
    assert final
    assert (final.status, final.keep_leftovers_until) == (status, None)
    assert RunningBatches(it.catalog).batches(TENANT) == []
    assert it.temporal.webhooks == [f"{BATCH} completed"]
    assert it.temporal.cancelled == []
    assert not it.has_input()


async def test_the_first_record_counts(it: Closing) -> None:
    first = await it.close(BatchPhase.EXPIRED)
    assert await it.close(BatchPhase.COMPLETED) == first
    assert {event.split()[1] for event in it.temporal.webhooks} == {"expired"}


async def test_a_close_that_was_cut_off_goes_on(it: Closing) -> None:
    def fail(_: str) -> None:
        it.store.down = True

    it.store.on_write = fail
    with pytest.raises(StoreError):
        await it.close()
    assert RunningBatches(it.catalog).batches(TENANT) == [REF]
    assert it.temporal.webhooks == []
    it.store.on_write = lambda key: None
    it.store.down = False
    assert (await it.close()).phase is BatchPhase.COMPLETED
    assert RunningBatches(it.catalog).batches(TENANT) == []


@pytest.mark.parametrize("by_temporal", [True, False])
async def test_a_run_that_a_signal_cancelled_is_cancelled_in_temporal_too(it: Closing, by_temporal: bool) -> None:
    await it.close(BatchPhase.CANCELLED, run_is_cancelled=by_temporal)
    assert it.temporal.cancelled == ([] if by_temporal else [BATCH])


async def test_a_reset_run_of_a_cancelled_batch_is_cancelled_again(it: Closing) -> None:
    await it.close(BatchPhase.CANCELLED, run_is_cancelled=True)
    assert (await it.close(BatchPhase.COMPLETED)).phase is BatchPhase.CANCELLED
    assert it.temporal.cancelled == [BATCH]


async def test_answers_that_could_not_be_merged_stay(it: Closing) -> None:
    await it.close(BatchPhase.FAILED, keep_answers=True)
    final = it.catalog.get_final(REF)
    assert final
    assert final.keep_leftovers_until
    assert it.has_input()
