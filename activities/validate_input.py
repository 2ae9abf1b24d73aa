"""The activity that validates the input: it reads the input once, checks every line and divides it into shards."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Final, Protocol

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.heartbeats import StopFlag, run_beside_heartbeats, run_in_thread
from activities.input.scan import Scanned, failed, scan_input
from activities.input.scan_process import ScanProcesses
from activities.input_addresses import allowed_address, is_address
from activities.per_tenant import AT_ONCE_PER_TENANT, PerTenant
from activities.records import keys
from activities.records.catalog import Catalog, FileRecord
from activities.records.running import RunningBatches
from activities.retry_input import RetryGoneError, RetryInput
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from activities.upstreams.client import InferenceClient
from activities.upstreams.errors import UpstreamUnavailableError
from activities.upstreams.routes import ModelRoutes, model_routes
from workflows.contract import VALIDATE_INPUT, ValidateInputStub
from workflows.types import BatchError, BatchPhase, BatchRecord, BatchSpec, BatchStatus, ValidateResult
from workflows.waits import Wait, WaitKind

ASK_AGAIN: Final = timedelta(seconds=5)
ASK_AGAIN_AT_LAST: Final = timedelta(seconds=30)
"""Bounds of the growing delay until upstreams that did not answer are asked for their models again, if a batch depends
on that. The input is read again each time."""


SMALL_INPUT_BYTES: Final = 1 << 20
"""Maximum size of an input that is checked in a thread, because handing it to another process would take longer."""

Scan = Callable[[Iterable[bytes], BatchSpec, ModelRoutes], Scanned]


class ValidateInput(ValidateInputStub):
    def __init__(
        self,
        store: ObjectStore,
        clients: Sequence[InferenceClient],
        processes: ScanProcesses,
        inputs: InputReader | None = None,
        prefixes: Sequence[str] = (),
    ) -> None:
        """Args: ``inputs`` reads inputs that are not uploaded; their addresses must begin with one of ``prefixes``."""
        self._inputs = inputs
        self._prefixes = prefixes
        self._store = store
        self._catalog = Catalog(store)
        self._running = RunningBatches(self._catalog)
        self._retry = RetryInput(self._catalog)
        self._clients = clients
        self._processes = processes
        self._turns = PerTenant(AT_ONCE_PER_TENANT)
        self._large = PerTenant(1)

    @activity.defn(name=VALIDATE_INPUT)
    async def validate_input(self, spec: BatchSpec) -> ValidateResult:
        if final := await asyncio.to_thread(self._catalog.get_final, spec.ref):
            # The batch has ended, and its workflow was reset.
            return ValidateResult(total=final.status.counts.total, has_ended=True)
        routes = await run_beside_heartbeats(model_routes(self._clients, any_model=spec.unknown_model == "line"))
        try:
            return await self._validate(spec, routes)
        except UpstreamUnavailableError as error:
            wait = Wait(kind=WaitKind.MODEL, subject="a model that the batch names", reason=str(error))
            raise ApplicationError(
                wait.text,
                wait,
                type="UpstreamUnavailable",
                next_retry_delay=min(ASK_AGAIN * activity.info().attempt, ASK_AGAIN_AT_LAST),
                category=ApplicationErrorCategory.BENIGN,
            ) from None

    async def _validate(self, spec: BatchSpec, routes: ModelRoutes) -> ValidateResult:
        async with self._turns.turn(spec.tenant):
            if error := await run_in_thread(lambda stop: self._copy_input(spec, stop)):
                return failed([error])
            if not await asyncio.to_thread(self._is_large, spec):
                return await run_in_thread(lambda stop: self._scan(scan_input, spec, routes, stop))
        async with self._large.turn(spec.tenant), self._processes.one() as process:
            return await run_in_thread(lambda stop: self._scan(process.scan, spec, routes, stop))

    def _is_large(self, spec: BatchSpec) -> bool:
        return bool(next(self._store.stream(keys.input_key(spec.ref), SMALL_INPUT_BYTES, 1), b""))

    def _scan(self, scan: Scan, spec: BatchSpec, routes: ModelRoutes, stop: StopFlag) -> ValidateResult:
        digest = hashlib.sha256()
        chunks = self._store.stream(keys.input_key(spec.ref))
        result, cut, order = scan(_hashed(chunks, digest.update, stop), spec, routes)
        if spec.retry_of and not result.errors:
            kept = self._retry.kept(spec)
            result = result.model_copy(update={"kept": kept.counts, "kept_errors": kept.errors})
        result = self._running.admit(spec, result)
        if cut and not result.errors:
            cut = cut._replace(input=digest.hexdigest()[:32])
            self._catalog.save_cut(spec.ref, cut, order)
            result = result.model_copy(update={"cut": cut.digest})
            status = BatchStatus(
                phase=BatchPhase.IN_PROGRESS,
                counts=result.counts,
                model=result.model,
                in_progress_at=result.finished_at,
                shards_total=len(result.shards),
            )
            self._catalog.save_running(BatchRecord(spec=spec, status=status))
        return result

    def _copy_input(self, spec: BatchSpec, stop: StopFlag) -> BatchError | None:
        """Make the batch's own copy of its input, unless there is one: its file may already be deleted then."""
        # The API does this too, but may have been killed between starting this run and writing its record.
        self._catalog.create_batch(spec)
        target = keys.input_key(spec.ref)
        with contextlib.suppress(ObjectNotFoundError):
            next(self._store.stream(target, 0, 0), b"")
            return None
        if spec.retry_of:
            return self._copy_retried(spec)
        if is_address(spec.input_file_id):
            return self._copy_from_bucket(spec, target, stop)
        try:
            record = self._catalog.get_file(spec.tenant, spec.input_file_id)
            error = _file_error(record, spec)
            if not error:
                self._store.copy(keys.content_key(spec.tenant, record.id), target)
        except ObjectNotFoundError:
            return _missing_file(spec)
        return error

    def _copy_from_bucket(self, spec: BatchSpec, target: str, stop: StopFlag) -> BatchError | None:
        address = allowed_address(spec.input_file_id, self._prefixes, spec.tenant)
        try:
            if not address or not self._inputs:
                raise ObjectNotFoundError(target)
            with self._store.writer(target) as writer:
                for chunk in self._inputs.stream(*address):
                    stop.check()
                    if writer.size + len(chunk) > spec.max_input_bytes:
                        return _too_large(spec, "more")
                    writer.write(chunk)
                writer.commit()
        except ObjectNotFoundError:
            message = f"Cannot read {spec.input_file_id}: there is no such object, or this server may not read it."
            return BatchError(code="invalid_request", message=message, param="input_file_id")
        return None

    def _copy_retried(self, spec: BatchSpec) -> BatchError | None:
        try:
            self._retry.copy(spec)
        except RetryGoneError as error:
            message = f"Batch {spec.retry_of} cannot be retried: {error}."
            return BatchError(code="invalid_request", message=message)
        return None


class InputReader(Protocol):
    """See :class:`activities.store.s3_inputs.S3Inputs`."""

    def stream(self, bucket: str, name: str) -> Iterator[bytes]: ...


def _hashed(chunks: Iterator[bytes], update: Callable[[bytes], None], stop: StopFlag) -> Iterator[bytes]:
    for chunk in chunks:
        stop.check()
        update(chunk)
        yield chunk


def _missing_file(spec: BatchSpec) -> BatchError:
    message = f"Cannot find file {spec.input_file_id[:64]}, or organization {spec.tenant} does not have access to it."
    return BatchError(code="invalid_request", message=message, param="file_id")


def _file_error(record: FileRecord, spec: BatchSpec) -> BatchError | None:
    if record.is_expired(time.time()):
        return _missing_file(spec)
    if record.purpose != "batch":
        message = f"The file's purpose is '{record.purpose}'; a batch needs one of purpose 'batch'."
        return BatchError(code="invalid_request", message=message, param="file_id")
    if record.bytes > spec.max_input_bytes:
        return _too_large(spec, f"{record.bytes} bytes")
    return None


def _too_large(spec: BatchSpec, size: str) -> BatchError:
    message = f"The batch input file is larger than the {spec.max_input_bytes} maximum for the model. It has {size}."
    return BatchError(code="invalid_request", message=message, param="file_id")
