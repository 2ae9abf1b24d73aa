"""The janitor deletes what nobody can ask for any more, and nothing else."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from activities.delete_expired import LATER_SECONDS, DeleteExpired
from activities.records import keys, shard_keys
from activities.records.batch_webhooks import BatchWebhook, BatchWebhooks
from activities.records.catalog import Catalog, FileRecord
from activities.records.keyed_files import KeyedFiles
from activities.records.reminders import RUN_LOOK_SECONDS, Reminder
from activities.records.running import RunningBatches
from activities.records.shard_keys import ShardRef
from activities.records.uploads import UploadRecord, UploadRecords
from activities.store.object_store import ObjectNotFoundError, StoreError
from tests.fakes.worker import (
    BATCH,
    FILE,
    REF,
    TENANT,
    FakeRuns,
    ShakyStore,
    activity_environment,
    make_spec,
    save_input,
)
from workflows.ids import result_file_id
from workflows.types import BatchPhase, BatchRecord, BatchStatus, DeleteExpiredInput, DeleteExpiredResult

CREATED = 1_700_000_000
HOUR = 3600


class Janitor:
    """Runs the activity over a real folder, at any time."""

    def __init__(self, folder: Path) -> None:
        self.store = ShakyStore(str(folder))
        self.catalog = Catalog(self.store)
        self.temporal = FakeRuns()

    async def run(self, at: int, limit: int = 10_000) -> DeleteExpiredResult:
        environment, _ = activity_environment()
        janitor = DeleteExpired(self.store, self.temporal.runs, clock=lambda: at)
        return await environment.run(janitor.delete_expired, DeleteExpiredInput(limit=limit))

    def keys(self, prefix: str) -> list[str]:
        return list(self.store.list(prefix))

    def reminders(self) -> list[tuple[str, str, int]]:
        return [(kind, object_id, at) for kind, _, object_id, at in self.catalog.due(10**11)]

    def save_file(self, content: bytes = b"x", **changes: object) -> FileRecord:
        """As an upload does."""
        record = FileRecord(id=FILE, bytes=1, created_ms=CREATED * 1000, filename="f", purpose="batch")
        record = record.model_copy(update=changes)
        self.catalog.remind("file", TENANT, record.id, record.first_look)
        return save_input(self.store, content, **record.model_dump())


@pytest.fixture
def it(tmp_path: Path) -> Janitor:
    return Janitor(tmp_path)


async def test_an_expired_file_goes_with_all_that_it_has(it: Janitor) -> None:
    it.save_file(expires_at=CREATED + HOUR)
    assert await it.run(CREATED + HOUR - 1) == DeleteExpiredResult()
    assert len(it.keys("files/")) == 2
    assert await it.run(CREATED + HOUR) == DeleteExpiredResult(files=1)
    assert it.keys("index/") == []
    # Its place in the list stays for a day.
    assert it.keys("files/") == [f"files/{TENANT}/{FILE}/deleted"]
    assert Catalog(it.store).file_entry(TENANT, FILE).created_ms == CREATED * 1000
    assert await it.run(CREATED + 25 * HOUR) == DeleteExpiredResult()
    assert it.keys("files/") == it.keys("due/") == []


async def test_a_file_that_lives_longer_is_looked_at_again_at_its_end(it: Janitor) -> None:
    record = it.save_file(expires_at=CREATED + 30 * 24 * HOUR)
    assert it.reminders() == [("file", FILE, CREATED + 24 * HOUR)]
    assert await it.run(CREATED + 25 * HOUR) == DeleteExpiredResult(kept=1)
    assert it.reminders() == [("file", FILE, CREATED + 30 * 24 * HOUR)]
    assert it.catalog.get_file(TENANT, FILE) == record
    assert await it.run(CREATED + 30 * 24 * HOUR) == DeleteExpiredResult(files=1)


async def test_a_file_that_never_expires_is_looked_at_once(it: Janitor) -> None:
    it.save_file()
    assert await it.run(CREATED + 25 * HOUR) == DeleteExpiredResult(kept=1)
    assert it.reminders() == []
    assert len(it.keys("files/")) == 2


async def test_content_without_a_record_goes(it: Janitor) -> None:
    it.save_file(expires_at=CREATED + 30 * 24 * HOUR)
    it.store.delete(f"files/{TENANT}/{FILE}/object.json")  # as if the API had died between the two
    assert await it.run(CREATED + 24 * HOUR) == DeleteExpiredResult(files=1)
    assert it.keys("files/") == []


async def test_a_file_that_its_owner_has_deleted_is_forgotten(it: Janitor) -> None:
    it.save_file(expires_at=CREATED + HOUR)
    Catalog(it.store, lambda: CREATED + 1).delete_file(TENANT, FILE)
    assert await it.run(CREATED + HOUR) == DeleteExpiredResult()
    assert await it.run(CREATED + 25 * HOUR) == DeleteExpiredResult()
    assert it.reminders() == it.keys("files/") == []


async def test_a_download_goes_on_while_its_file_is_deleted(it: Janitor) -> None:
    it.save_file(b"all of it", expires_at=CREATED + HOUR)
    stream = it.store.stream(keys.content_key(TENANT, FILE))
    assert (await it.run(CREATED + HOUR)).files == 1
    assert b"".join(stream) == b"all of it"


@pytest.mark.parametrize("published", [True, False])
async def test_an_upload_that_meets_the_janitor_at_work_knows_it(it: Janitor, published: bool) -> None:
    """Whether its record comes before the janitor looks, or after: it stays whole, or the upload learns of it."""
    before = it.save_file(expires_at=CREATED + HOUR)
    again = before.model_copy(update={"created_ms": (CREATED + HOUR) * 1000, "expires_at": CREATED + 3 * HOUR})
    key = f"files/{TENANT}/{FILE}/object.json"

    def at_the_mark(written: str) -> None:
        if "/deleting-" in written:
            it.store.on_write = lambda key: None
            it.store.put(key, again.model_dump_json().encode())

    if published:
        it.store.on_write = at_the_mark
        assert await it.run(CREATED + HOUR) == DeleteExpiredResult(kept=1)
        assert it.catalog.get_file(TENANT, FILE) == again
        assert it.catalog.is_whole(TENANT, FILE)
    else:
        assert await it.run(CREATED + HOUR) == DeleteExpiredResult(files=1)
        with pytest.raises(StoreError):  # its content was in the store before the janitor came
            KeyedFiles(Catalog(it.store, lambda: CREATED + HOUR)).save(TENANT, again)
        assert it.catalog.find_file(TENANT, FILE) is None


def test_while_a_file_is_being_deleted_it_is_not_whole(it: Janitor) -> None:
    it.save_file()
    assert it.catalog.is_whole(TENANT, FILE)
    it.store.put(f"files/{TENANT}/{FILE}/deleting-{int(time.time())}-a", b"")
    assert not it.catalog.is_whole(TENANT, FILE)
    assert Catalog(it.store, lambda: time.time() + HOUR).is_whole(TENANT, FILE)  # it was cut off


async def test_parts_behind_the_end_of_a_batch_go_and_its_record_stays(it: Janitor) -> None:
    spec = make_spec(output_expires_after=2 * HOUR)
    it.catalog.create_batch(spec)
    it.catalog.save_final(BatchRecord(spec=spec, status=BatchStatus(phase=BatchPhase.COMPLETED)))
    it.store.put(shard_keys.part_key(ShardRef(REF, "c1", 0), "000001-a", 0), b"late")
    RunningBatches(it.catalog).add(REF, 5)
    it.save_file(id=result_file_id(BATCH, "output"), expires_at=CREATED + 2 * HOUR)
    it.store.put(keys.content_key(TENANT, result_file_id(BATCH, "error")), b"never published")
    for reminder in list(it.catalog.due(10**11)):
        it.catalog.forget(reminder)
    it.catalog.remind("batch", *REF, CREATED + HOUR)
    assert await it.run(CREATED + HOUR) == DeleteExpiredResult(batches=1, kept=1, files=1)
    prefix = f"batches/{TENANT}/{BATCH}/"
    assert it.keys("batches/") == [f"{prefix}created.json", f"{prefix}record.json"]
    assert RunningBatches(it.catalog).batches(TENANT) == []
    assert it.reminders() == [("file", result_file_id(BATCH, "output"), CREATED + 2 * HOUR)]
    assert await it.run(CREATED + 2 * HOUR) == DeleteExpiredResult(files=1)
    assert it.catalog.get_batch(REF).status.phase is BatchPhase.COMPLETED


def open_batch(it: Janitor) -> str:
    """A batch without a final record, and the key of an answer that it has."""
    it.catalog.remind("batch", *REF, CREATED)
    RunningBatches(it.catalog).add(REF, 5)
    it.catalog.create_batch(make_spec())
    part = shard_keys.part_key(ShardRef(REF, "c1", 0), "000001-a", 0)
    it.store.put(part, b"answers")
    return part


async def test_a_batch_that_runs_is_left_alone_and_looked_at_again(it: Janitor) -> None:
    part = open_batch(it)
    it.temporal.open.add(BATCH)
    assert await it.run(CREATED + 5) == DeleteExpiredResult(kept=1)
    assert it.store.get(part) == b"answers"
    assert it.reminders() == [("batch", BATCH, CREATED + 5 + RUN_LOOK_SECONDS)]


async def test_a_batch_whose_run_was_terminated_gets_another_that_closes_it(it: Janitor) -> None:
    part = open_batch(it)
    it.catalog.remind("batch", *REF, CREATED + 1)  # of another create under the same key
    assert await it.run(CREATED + 5) == DeleteExpiredResult(closed=1)
    assert it.temporal.started == [BATCH]
    assert it.store.get(part) == b"answers"
    # The new run may be lost too.
    assert it.reminders() == [("batch", BATCH, CREATED + 5 + RUN_LOOK_SECONDS)]
    assert await it.run(CREATED + 305) == DeleteExpiredResult(kept=1)
    assert it.temporal.started == [BATCH]


async def test_a_batch_that_ends_while_the_janitor_looks_is_not_closed_again(it: Janitor) -> None:
    open_batch(it)
    status = BatchStatus(phase=BatchPhase.COMPLETED, completed_at=CREATED + 5)
    get = it.temporal.is_open

    async def ends(batch_id: str) -> bool:
        it.catalog.save_final(BatchRecord(spec=make_spec(), status=status))
        return await get(batch_id)

    it.temporal.is_open = ends
    assert await it.run(CREATED + 5) == DeleteExpiredResult(kept=1)
    assert it.temporal.started == []


async def test_a_batch_that_was_started_and_not_recorded_is_closed_too(it: Janitor) -> None:
    it.catalog.remind("batch", *REF, CREATED)
    it.temporal.specs[BATCH] = make_spec()
    assert await it.run(CREATED + 5) == DeleteExpiredResult(closed=1)
    assert it.temporal.started == [BATCH]


async def test_a_batch_that_was_never_started_is_forgotten(it: Janitor) -> None:
    it.catalog.remind("batch", *REF, CREATED)
    RunningBatches(it.catalog).add(REF)
    assert await it.run(CREATED + 5) == DeleteExpiredResult()
    assert it.temporal.started == it.reminders() == RunningBatches(it.catalog).batches(TENANT) == []


async def test_a_run_that_cannot_be_looked_at_is_looked_at_later(it: Janitor, caplog: pytest.LogCaptureFixture) -> None:
    open_batch(it)
    it.temporal.down = True
    with caplog.at_level(logging.ERROR):
        assert await it.run(CREATED + 5) == DeleteExpiredResult(failed=1)
    assert BATCH in caplog.text
    ((_, _, at),) = it.reminders()
    it.temporal.down = False
    assert await it.run(at) == DeleteExpiredResult(closed=1)


async def test_a_batch_that_has_just_ended_is_cleaned_an_hour_later(it: Janitor) -> None:
    part = open_batch(it)
    status = BatchStatus(phase=BatchPhase.CANCELLED, cancelled_at=CREATED + 5)
    it.catalog.save_final(BatchRecord(spec=make_spec(), status=status))
    assert await it.run(CREATED + 60) == DeleteExpiredResult(kept=1)
    assert it.reminders() == [("batch", BATCH, CREATED + 5 + HOUR)]
    assert (await it.run(CREATED + 5 + HOUR)).batches == 1
    assert part not in it.keys("batches/")


async def test_an_upload_that_is_over_is_deleted_by_its_records(it: Janitor) -> None:
    record = UploadRecord(
        id="upload_1",
        bytes=1,
        created_ms=CREATED * 1000,
        filename="f",
        mime_type="text/plain",
        purpose="batch",
        lifetime=None,
    )
    UploadRecords(it.store).create(TENANT, record)
    it.store.put(keys.upload_part_key(TENANT, "upload_1", "part_1"), b"x")
    assert await it.run(record.expires_at) == DeleteExpiredResult()
    assert await it.run(record.kept_until) == DeleteExpiredResult(uploads=1)
    assert it.keys("uploads/") == it.reminders() == []


async def test_one_that_fails_does_not_stop_the_others(it: Janitor, caplog: pytest.LogCaptureFixture) -> None:
    it.save_file(id="file-broken", expires_at=CREATED + HOUR)
    it.store.put(f"files/{TENANT}/file-broken/object.json", b"not a record")
    it.save_file(expires_at=CREATED + HOUR)
    with caplog.at_level(logging.ERROR):
        assert await it.run(CREATED + HOUR) == DeleteExpiredResult(files=1, failed=1)
    assert "file-broken" in caplog.text
    assert ("file", "file-broken", CREATED + HOUR + LATER_SECONDS) in it.reminders()


async def test_a_run_does_no_more_than_it_may_and_says_so(it: Janitor) -> None:
    for number in range(5):
        it.save_file(id=f"file-{number}", expires_at=CREATED + HOUR + number)
    assert await it.run(CREATED + 2 * HOUR, limit=3) == DeleteExpiredResult(files=3, more=True)
    assert [object_id for _, object_id, at in it.reminders() if at <= CREATED + 2 * HOUR] == ["file-3", "file-4"]
    assert await it.run(CREATED + 2 * HOUR, limit=2) == DeleteExpiredResult(files=2)


async def test_what_killed_writers_left_goes(it: Janitor, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = Mock()
    monkeypatch.setattr(it.store, "delete_stale", stale)
    await it.run(CREATED)
    stale.assert_called_once_with()


class Killed(BaseException):
    """Not an Exception: as little is done behind it as behind a kill."""


@pytest.mark.parametrize("cut_at", range(5))
async def test_a_crash_between_any_two_steps_ends_the_same(
    it: Janitor, cut_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    it.save_file(expires_at=CREATED + HOUR)
    delete, steps = it.store.delete, iter(range(100))

    def dies(*keys: str) -> None:
        if next(steps) == cut_at:
            raise Killed
        delete(*keys)

    monkeypatch.setattr(it.store, "delete", dies)
    with pytest.raises(Killed):
        await it.run(CREATED + HOUR)
    await it.run(CREATED + HOUR)
    await it.run(CREATED + 26 * HOUR)
    assert it.keys("index/") == it.keys("due/") == []
    assert [key for key in it.keys("files/") if "/deleting-" not in key] == []


async def test_while_the_store_is_away_the_attempt_fails_and_nothing_is_forgotten(it: Janitor) -> None:
    it.save_file(expires_at=CREATED + HOUR)
    it.store.down = True
    with pytest.raises(StoreError):
        await it.run(CREATED + HOUR)
    it.store.down = False
    assert await it.run(CREATED + HOUR) == DeleteExpiredResult(files=1)


@pytest.mark.parametrize("tenant", ["t", "a.b", "a-b_c.d", "1"])
def test_a_reminder_reads_back(it: Janitor, tenant: str) -> None:
    it.catalog.remind("upload", tenant, "upload_a-b", 1_700_000_000)
    assert list(it.catalog.due(1_700_000_000)) == [Reminder("upload", tenant, "upload_a-b", 1_700_000_000)]


def test_reminders_come_in_order_and_no_further_than_now(it: Janitor) -> None:
    for at in (50, 7, 12_345_678_901, 50):
        it.catalog.remind("file", TENANT, f"file-{at}", at)
    it.catalog.remind("batch", *REF, 50)
    assert [at for *_, at in it.catalog.due(49)] == [7]
    assert list(it.catalog.due(50)) == [
        Reminder("file", TENANT, "file-7", 7),
        Reminder("batch", *REF, 50),
        Reminder("file", TENANT, "file-50", 50),
    ]


async def test_answers_that_could_not_be_merged_stay_as_long_as_their_files_would_have(it: Janitor) -> None:
    spec = make_spec()
    record = BatchRecord(
        spec=spec, status=BatchStatus(phase=BatchPhase.FAILED), keep_leftovers_until=CREATED + 2 * HOUR
    )
    it.catalog.save_final(record)
    part = shard_keys.part_key(ShardRef(REF, "c1", 0), "000001-a", 0)
    it.store.put(part, b"answers")
    it.catalog.remind("batch", *REF, CREATED + HOUR)
    await it.run(CREATED + HOUR)
    assert it.store.get(part) == b"answers"
    assert it.reminders() == [("batch", BATCH, CREATED + 2 * HOUR)]
    await it.run(CREATED + 2 * HOUR)
    assert it.keys(f"batches/{TENANT}/{BATCH}/parts/") == []


async def test_the_feed_of_a_batch_goes_with_its_result_files(it: Janitor) -> None:
    spec = make_spec(output_expires_after=100 * HOUR)
    it.catalog.save_final(BatchRecord(spec=spec, status=BatchStatus(phase=BatchPhase.COMPLETED, completed_at=CREATED)))
    it.store.put(f"{keys.feed_prefix(REF)}00000000", b"[]")
    BatchWebhooks(it.store).save(REF, BatchWebhook("https://x", "secret"))
    it.catalog.remind("batch", *REF, CREATED)
    await it.run(CREATED + HOUR)
    assert it.keys(keys.feed_prefix(REF))
    assert BatchWebhooks(it.store).get(REF).secret == "secret"
    await it.run(CREATED + 100 * HOUR)
    assert it.keys(keys.feed_prefix(REF)) == it.keys("due/") == []
    with pytest.raises(ObjectNotFoundError):
        BatchWebhooks(it.store).get(REF)
