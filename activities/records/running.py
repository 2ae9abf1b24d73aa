"""Counts the running batches of tenants with limits, in the store, which all processes share."""

from __future__ import annotations

import contextlib
import threading

from activities.records.catalog import Catalog
from activities.records.keys import active_key, active_prefix
from activities.records.shard_keys import answers_prefixes
from activities.store.object_store import ObjectNotFoundError
from workflows.ids import BatchRef
from workflows.types import BatchError, BatchSpec, ValidateResult


class RunningBatches:
    """Each counted batch has an object from before its start until its final record is written. All calls block.

    Limits are exact within one process. Two processes that admit batches at the same moment may together exceed a limit
    by what each admits.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._lock = threading.Lock()

    def batches(self, tenant: str) -> list[BatchRef]:
        prefix = active_prefix(tenant)
        return [BatchRef(tenant, key.removeprefix(prefix)) for key in self._store.list(prefix)]

    def add(self, ref: BatchRef, requests: int = 0) -> None:
        """Count a batch. Args: ``requests`` is its number of requests, or 0 before its input is validated."""
        self._store.put(active_key(ref), str(requests).encode())

    def remove(self, ref: BatchRef) -> None:
        self._store.delete(active_key(ref))

    def answers_bytes(self, tenant: str) -> int:
        """Return the bytes of committed answers of all counted batches that are not in result files yet."""
        prefixes = (prefix for ref in self.batches(tenant) for prefix in answers_prefixes(ref))
        return sum(map(self._store.bytes_below, prefixes))

    def admit(self, spec: BatchSpec, result: ValidateResult) -> ValidateResult:
        """Count the requests of a batch whose input is valid.

        Returns ``result``, or a result with an error if the requests are too many for the batch's tenant.
        """
        if not spec.counts_towards_limits or result.errors:
            return result
        with self._lock:
            others = [ref for ref in self.batches(spec.tenant) if ref != spec.ref]
            maximum = spec.max_queued_requests
            if maximum is not None and self._queued(others) > maximum - result.total:
                # A worker that was thought dead may have written the object of a batch after the batch had ended.
                others = [ref for ref in others if not self._removed_if_ended(ref)]
                if (queued := self._queued(others)) > maximum - result.total:
                    error = _too_many_queued(spec, result, maximum, queued)
                    return ValidateResult(errors=[error], errors_total=1, finished_at=result.finished_at)
            self.add(spec.ref, result.total)
        return result

    def _queued(self, batches: list[BatchRef]) -> int:
        total = 0
        for ref in batches:
            with contextlib.suppress(ObjectNotFoundError):  # the batch has ended in the meantime
                total += int(self._store.get(active_key(ref)))
        return total

    def _removed_if_ended(self, ref: BatchRef) -> bool:
        has_ended = self._catalog.get_final(ref) is not None
        if has_ended:
            self.remove(ref)
        return has_ended


def _too_many_queued(spec: BatchSpec, result: ValidateResult, maximum: int, queued: int) -> BatchError:
    # Clients match on the first words of this message.
    if result.total > maximum:
        advice = "Waiting does not help: please divide the batch."
    else:
        advice = "Waiting helps: please try again once some in_progress batches have been completed."
    message = (
        f"Enqueued token limit reached for {result.model or spec.endpoint} in organization {spec.tenant}. "
        f"Limit: {maximum} enqueued requests; running batches have {queued}, and this batch has {result.total}. "
        f"{advice}"
    )
    return BatchError(code="token_limit_exceeded", message=message)
