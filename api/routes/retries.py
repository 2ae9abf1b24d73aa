"""The rules by which a batch, or a part of its requests, may be retried."""

from __future__ import annotations

import uuid
from typing import Final

from activities.records.catalog import Catalog
from activities.records.retries import Retries, Retry
from activities.retry_input import RetryGoneError, RetryInput
from api.http.errors import ApiError, permanent_conflict, shown
from api.http.schemas import CreateBatch, ExpiresAfter, RetryBatch, Webhook
from api.routes.creates import RULES, key_conflict
from workflows.ids import BatchRef, batch_id_for_key, create_digest
from workflows.types import BatchPhase, BatchRecord, BatchSpec

MAX_CODES: Final = 50
MAX_CODE_LENGTH: Final = 128
SHOWN_CODES: Final = 10


class RetryRules:
    """Checks and claims retries. All methods block."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._retries = Retries(catalog)
        self._input = RetryInput(catalog)

    def claim(self, first: BatchRecord, body: RetryBatch, idempotency_key: str | None) -> Retry:
        """Return the retry of a batch: the existing one, or a new one that the caller has to start.

        Raises:
            ApiError: nothing can be retried, other codes were retried already, or the idempotency key belongs to a
                different batch.
        """
        ref = first.spec.ref
        codes, key = _codes(body), idempotency_key or body.idempotency_key
        _check_end(first)
        wanted = Retry(batch_id_for_key(ref.tenant, key) if key else f"batch_{uuid.uuid4().hex}", codes)
        if key:
            self._check_key(ref, wanted)
        if not self._retries.is_retried(ref):
            self._check_lines(first, codes)
        retry = self._retries.claim(ref, wanted)
        if retry.codes != codes:
            text = (
                f"Batch {ref.batch_id} was already retried as {retry.batch_id}, for other codes. Wait for the end of "
                "that batch and retry it: its results include those of the first batch."
            )
            raise permanent_conflict(text, code="already_retried")
        return retry

    def release(self, first: BatchRecord, retry: Retry) -> None:
        """Forget a retry that was not started."""
        self._retries.release(first.spec.ref, retry)

    def retried_by(self, record: BatchRecord) -> str | None:
        """Return the id of the newest retry of a batch, if there is one."""
        if not record.status.phase.is_terminal or not record.status.error_file_id:
            return None
        retry = self._retries.latest(record.spec.ref)
        return retry.batch_id if retry else None

    def _check_key(self, ref: BatchRef, wanted: Retry) -> None:
        there = self._catalog.find_batch(BatchRef(ref.tenant, wanted.batch_id))
        if there and there.spec.digest != retry_digest(ref.batch_id, wanted.codes):
            raise key_conflict()

    def _check_lines(self, first: BatchRecord, codes: list[str]) -> None:
        try:
            self._input.check(first)
            if not codes:
                return
            lines = self._input.retried(first, codes)
        except RetryGoneError as error:
            text = (
                f"Batch {first.spec.batch_id} cannot be retried: {error}. A retry reads the requests from the input "
                "file and takes over the first batch's results. Upload the requests again, and create a new batch."
            )
            raise permanent_conflict(text, code="retry_gone") from None
        if not lines.requests:
            maximum = lines.codes.most_common(SHOWN_CODES)
            there = ", ".join(f"{shown(code)} ({count})" for code, count in maximum)
            text = f"No failed request of batch {first.spec.batch_id} has one of these codes. It has: {there}."
            raise ApiError(400, text, code="invalid_value", param="codes")


def retry_digest(batch_id: str, codes: list[str]) -> str:
    """Return the digest that distinguishes a repeated retry from another request with the same idempotency key."""
    return create_digest({"retry_of": batch_id, "codes": codes})


def create_of(first: BatchSpec, webhook: Webhook | None) -> CreateBatch:
    """Return the request that would create the batch again, without the validation of client input."""
    return CreateBatch.model_construct(
        input_file_id=first.input_file_id,
        endpoint=first.endpoint,
        completion_window=first.completion_window,
        metadata={**(first.metadata or {}), "retry_of": first.batch_id},
        output_expires_after=ExpiresAfter(anchor="created_at", seconds=first.output_expires_after),
        webhook=webhook,
    )


def retry_spec(spec: BatchSpec, first: BatchSpec, retry: Retry) -> BatchSpec:
    """Return the specification of a retry, whose input keeps the rules under which it was accepted.

    Args: ``spec`` was made from :func:`create_of`; ``first`` is that of the batch that is retried.
    """
    return spec.model_copy(
        update={
            "batch_id": retry.batch_id,
            "digest": retry_digest(first.batch_id, retry.codes),
            "retry_of": first.batch_id,
            "retry_codes": retry.codes,
            **{name: getattr(first, name) for name in RULES},
        }
    )


def _codes(body: RetryBatch) -> list[str]:
    codes = sorted(set(body.codes or ()))
    if len(codes) > MAX_CODES or any(not 0 < len(code) <= MAX_CODE_LENGTH for code in codes):
        text = f"Invalid 'codes': expected up to {MAX_CODES} codes of 1 to {MAX_CODE_LENGTH} characters."
        raise ApiError(400, text, code="invalid_value", param="codes")
    if body.codes == []:
        raise ApiError(400, "Invalid 'codes': an empty list retries nothing. Leave it out to retry all.", param="codes")
    return codes


def _check_end(first: BatchRecord) -> None:
    batch_id, status = first.spec.batch_id, first.status
    if not status.phase.is_terminal:
        text = f"Cannot retry a batch with status '{status.phase.value}': wait for its end, or cancel it first."
        raise permanent_conflict(text)
    if status.error_file_id:
        return
    if status.phase is BatchPhase.COMPLETED or status.output_file_id:
        text = f"Batch {batch_id} has no failed requests: there is nothing to retry."
    else:
        text = f"Batch {batch_id} has no results that a retry could take over. Create a new batch instead."
    raise permanent_conflict(text, code="nothing_to_retry")
