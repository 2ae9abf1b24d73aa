"""Counts the running batches of tenants with limits, in the store, which all processes share."""

from __future__ import annotations

import contextlib
import threading

from activities.records.catalog import Catalog
from activities.records.keys import active_key, active_prefix
from activities.records.shard_keys import answers_prefixes
from activities.store.object_store import ObjectNotFoundError
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

    def ids(self, tenant: str) -> list[str]:
        prefix = active_prefix(tenant)
        return [key.removeprefix(prefix) for key in self._store.list(prefix)]

    def add(self, tenant: str, batch_id: str, requests: int = 0) -> None:
        """Count a batch. Args: ``requests`` is its number of requests, or 0 before its input is validated."""
        self._store.put(active_key(tenant, batch_id), str(requests).encode())

    def remove(self, tenant: str, batch_id: str) -> None:
        self._store.delete(active_key(tenant, batch_id))

    def answers_bytes(self, tenant: str) -> int:
        """Return the bytes of committed answers of all counted batches that are not in result files yet."""
        prefixes = (prefix for batch_id in self.ids(tenant) for prefix in answers_prefixes(tenant, batch_id))
        return sum(map(self._store.bytes_below, prefixes))

    def admit(self, spec: BatchSpec, result: ValidateResult) -> ValidateResult:
        """Count the requests of a batch whose input is valid.

        Returns ``result``, or a result with an error if the requests are too many for the batch's tenant.
        """
        if not spec.counts_towards_limits or result.errors:
            return result
        with self._lock:
            others = [batch_id for batch_id in self.ids(spec.tenant) if batch_id != spec.batch_id]
            maximum = spec.max_queued_requests
            if maximum is not None and self._queued(spec.tenant, others) > maximum - result.total:
                # A worker that was thought dead may have written the object of a batch after the batch had ended.
                others = [batch_id for batch_id in others if not self._removed_if_ended(spec.tenant, batch_id)]
                if (queued := self._queued(spec.tenant, others)) > maximum - result.total:
                    error = _too_many_queued(spec, result, maximum, queued)
                    return ValidateResult(errors=[error], errors_total=1, finished_at=result.finished_at)
            self.add(spec.tenant, spec.batch_id, result.total)
        return result

    def _queued(self, tenant: str, batch_ids: list[str]) -> int:
        total = 0
        for batch_id in batch_ids:
            with contextlib.suppress(ObjectNotFoundError):  # the batch has ended in the meantime
                total += int(self._store.get(active_key(tenant, batch_id)))
        return total

    def _removed_if_ended(self, tenant: str, batch_id: str) -> bool:
        has_ended = self._catalog.get_final(tenant, batch_id) is not None
        if has_ended:
            self.remove(tenant, batch_id)
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
