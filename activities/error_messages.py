"""Reads one message for each error code of a batch from the store. Messages never enter Temporal."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from activities.records import keys
from activities.records.catalog import Catalog
from activities.records.shard_keys import ShardRef
from activities.results.error_lines import read_error
from activities.results.output_lines import result_lines
from activities.results.shard_lines import lines_of_shard
from activities.store.object_store import ObjectNotFoundError, ObjectStore
from workflows.error_summary import OTHER, ErrorCount
from workflows.ids import BatchRef
from workflows.types import BatchRecord

REMEMBERED: Final = 10_000
"""Maximum number of messages in the cache of a process, so that repeated requests for a batch read each only once."""


def messages_of_file(
    store: ObjectStore, tenant: str, file_id: str | None, errors: Sequence[ErrorCount]
) -> dict[str, str]:
    """Return the message of the first line of each error code in an error file. Blocks.

    Raises:
        ObjectNotFoundError: the file does not exist.
    """
    wanted = {one.first_lines[0]: one.code for one in errors if one.first_lines and one.code != OTHER}
    found: dict[str, str] = {}
    if not (file_id and wanted):
        return found
    for number, line in result_lines(store.stream(keys.content_key(tenant, file_id))):
        if code := wanted.pop(number, None):
            found[code] = read_error(line).message or ""
        if not wanted:
            break
    return found


class ErrorMessages:
    """Reads the messages of running batches from their committed lines."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[BatchRef, str], str] = OrderedDict()

    def of(self, record: BatchRecord) -> dict[str, str]:
        """Return a message for each code in the error summary of a batch whose message can be read. Blocks."""
        if record.status.phase.is_terminal:
            return record.error_messages
        ref = record.spec.ref
        found: dict[str, str] = {}
        for one in record.status.error_summary:
            key = (ref, one.code)
            with self._lock:
                message = self._known.get(key)
            if message is None and one.code != OTHER and one.shard is not None:
                message = self._read(ref, one.shard, one.first_lines[0])
            if message is not None:
                found[one.code] = message
                with self._lock:
                    self._known[key] = message
                    self._known.move_to_end(key)
                    if len(self._known) > REMEMBERED:
                        self._known.popitem(last=False)
        return found

    def _read(self, ref: BatchRef, shard: int, line: int) -> str | None:
        for cut in self._catalog.cuts(ref):
            with contextlib.suppress(ObjectNotFoundError):
                lines = lines_of_shard(self._catalog.store, ShardRef(ref, cut, shard), [line])
                return read_error(next(lines)).message or ""
        return None
