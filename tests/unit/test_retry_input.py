"""What a retry takes from the batch that it retries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.input.jsonl import read_lines
from activities.records import keys
from activities.records.catalog import Catalog, FileRecord
from activities.records.retries import Retries, Retry
from activities.results.error_lines import read_error
from activities.results.output_lines import OutputLines
from activities.retry_input import RetryGoneError, RetryInput
from tests.fakes.worker import BATCH, REF, TENANT, ShakyStore, make_spec, refusal, save_input
from workflows.ids import result_file_id
from workflows.types import BatchPhase, BatchRecord, BatchStatus, Counts, MissingReason

SPEC = make_spec(batch_id="batch_2", retry_of=BATCH)
LINES = OutputLines(BATCH)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (LINES.missing(1, b'"a"', MissingReason.EXPIRED), "batch_expired"),
        (LINES.error(1, b'"a"', refusal(404)), "t"),
        (OutputLines(BATCH, strict=True).error(1, b'"a"', refusal(404)), "t"),
        (b'{"error":null,"response":{"status_code":400,"body":{"error":{"code":"too_long"}}}}', "too_long"),
        (b'{"error":null,"response":{"status_code":400,"body":{"error":"no"}}}', "http_400"),
        (b'{"error":null,"response":{"status_code":400,"body":[]}}', "http_400"),
        (b'{"error":{"code":400},"response":null}', "400"),
        (b'{"error":{"code":null},"response":null}', "unknown"),
        (b"{}", "unknown"),
    ],
)
def test_codes_of_error_lines(line: bytes, code: str) -> None:
    assert read_error(line).code == code


class Chopped(ShakyStore):
    """Gives its bytes one at a time."""

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = b"".join(super().stream(key, offset, length))
        return (data[at : at + 1] for at in range(len(data)))


def ended(store: ShakyStore, content: bytes, failed: dict[int, MissingReason]) -> BatchRecord:
    save_input(store, content)
    lines = b"".join(LINES.missing(number, b'"x"', reason) for number, reason in failed.items())
    file_id = result_file_id(BATCH, "error")
    store.put(keys.content_key(TENANT, file_id), lines)
    record = FileRecord(id=file_id, bytes=len(lines), created_ms=1, filename="f", purpose="batch_output")
    Catalog(store).save_file(TENANT, record)
    counts = Counts(total=9, completed=9 - len(failed), failed=len(failed))
    status = BatchStatus(phase=BatchPhase.EXPIRED, counts=counts, error_file_id=file_id)
    first = BatchRecord(spec=make_spec(), status=status)
    Catalog(store).save_final(first)
    return first


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf{1}\r\n{2}\n\n {4}\n{5}\n{6}\n{7}", b"{1}\n{2}\n\n{4}\n{5}\n{6}\n{7}\n"]
)
@pytest.mark.parametrize("retried", [(1,), (2, 4), (7,), (1, 7), (1, 2, 4, 5, 6, 7)])
def test_lines_that_are_retried_keep_their_numbers(tmp_path: Path, content: bytes, retried: tuple[int, ...]) -> None:
    failed = dict.fromkeys((1, 2, 4, 5, 6, 7), MissingReason.EXPIRED) | dict.fromkeys(retried, MissingReason.CANCELLED)
    for store in (ShakyStore(str(tmp_path / "a")), Chopped(str(tmp_path / "b"))):
        ended(store, content, failed)
        RetryInput(Catalog(store)).copy(SPEC.model_copy(update={"retry_codes": ["batch_cancelled"]}))
        made = list(read_lines(store.stream(keys.input_key(SPEC.ref)), 1000))
        assert [(line.number, line.data) for line in made] == [(n, b"{%d}" % n) for n in retried]
        assert store.get(keys.kept_key(SPEC.ref, "error")).count(b"\n") == 6


def test_what_is_no_longer_stored(tmp_path: Path) -> None:
    store = ShakyStore(str(tmp_path))
    retry = RetryInput(Catalog(store))
    with pytest.raises(RetryGoneError, match=f"the record of batch {BATCH} no longer exists"):
        retry.copy(SPEC)
    first = ended(store, b"{1}\n", {1: MissingReason.EXPIRED})
    retry.check(first)
    store.delete(keys.content_key(TENANT, first.spec.input_file_id))
    with pytest.raises(RetryGoneError, match="its input file file-1 was deleted or has expired"):
        retry.copy(SPEC)
    Catalog(store).delete_file(TENANT, first.status.error_file_id or "")
    with pytest.raises(RetryGoneError, match="its error file"):
        retry.check(first)


def test_one_retry_at_a_time(tmp_path: Path) -> None:
    catalog = Catalog(ShakyStore(str(tmp_path)))
    retries = Retries(catalog)
    first, second, third = (Retry(f"batch_{name}", []) for name in "abc")
    assert retries.latest(REF) is None
    assert [retries.claim(REF, one) for one in (first, second)] == [first, first]
    retries.release(REF, first)
    assert retries.claim(REF, second) == second
    failed = BatchRecord(spec=make_spec(batch_id="batch_b"), status=BatchStatus(phase=BatchPhase.FAILED))
    catalog.save_final(failed)
    assert not retries.is_retried(REF)
    assert retries.claim(REF, second) == second
    assert retries.claim(REF, third) == third
    assert retries.latest(REF) == third
