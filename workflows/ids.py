"""Derives ids from their inputs only, so that an operation that runs twice creates the same object."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

ResultKind = Literal["output", "error"]
"""One of the two result files of a batch."""

_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BATCH_ID: Final = re.compile(r"batch_[0-9a-f]{32}")
_RESULT_FILE_ID: Final = re.compile(r"file-([oe])([0-9A-Za-z]{23})")


class BatchRef(NamedTuple):
    """Identifies a batch, which only its own tenant can see."""

    tenant: str
    batch_id: str


def _hex(*parts: str, length: int = 32) -> str:
    # A tenant or an id cannot contain NUL, so different lists of parts never yield the same text.
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:length]


def batch_id_for_key(tenant: str, idempotency_key: str) -> str:
    """Return the batch id, which is also the workflow id, for a tenant's idempotency key."""
    return "batch_" + _hex("batch", tenant, idempotency_key)


def file_id_for_key(tenant: str, idempotency_key: str) -> str:
    """Return the id of the file that a tenant uploads with an idempotency key."""
    return "file-" + _hex("upload", tenant, idempotency_key, length=24)


def file_id_for_upload(upload_id: str, part_ids: Sequence[str]) -> str:
    """Return the id of the file that an upload creates from these parts in this order."""
    return "file-" + _hex("parts", upload_id, *part_ids, length=24)


def is_batch_id(text: str) -> bool:
    """Return whether ``text`` has the form of a batch id that the API creates."""
    return _BATCH_ID.fullmatch(text) is not None


def result_file_id(batch_id: str, kind: ResultKind) -> str:
    """Return the id of a result file: the first letter of its kind, and the batch's number in 23 letters and digits."""
    number = int(batch_id[6:] if is_batch_id(batch_id) else _hex("file", batch_id), 16)
    digits = ""
    while len(digits) < 23:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return f"file-{kind[0]}{digits}"


def batch_of_result_file(file_id: str) -> tuple[str, ResultKind] | None:
    """Invert :func:`result_file_id`; return ``None`` for an id that no result file can have."""
    match = _RESULT_FILE_ID.fullmatch(file_id)
    if not match:
        return None
    number = 0
    for digit in match[2]:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    return (f"batch_{number:032x}", "output" if match[1] == "o" else "error") if number < 1 << 128 else None


def request_id_prefix(batch_id: str) -> str:
    """Return the 24 hex digits with which the ids of a batch's requests begin; an eight-digit line number follows."""
    return _hex("request", batch_id, length=24)


def webhook_workflow_id(batch_id: str) -> str:
    return f"webhook-{batch_id}"


def event_id(batch_id: str) -> str:
    """Return the id of the event that a batch has ended. Each batch has one such event."""
    return "evt_" + _hex("event", batch_id)


def webhook_id(batch_id: str, endpoint: str) -> str:
    """Return the id of a batch's event for one endpoint. It is the same for every delivery attempt."""
    return "wh_" + _hex("webhook", batch_id, endpoint)


def create_digest(parameters: dict[str, Any]) -> str:
    """Return a digest of a create call's parameters. The order of keys does not matter; ``None`` and ``{}`` differ."""
    return _hex(json.dumps(parameters, sort_keys=True, ensure_ascii=True))


def format_ranges(numbers: set[int]) -> str:
    """Format ``{0, 1, 2, 5}`` as ``0-2,5``: short for sets that fill from one end, and readable in Temporal's UI."""
    ranges: list[str] = []
    start = previous = -1
    for number in [*sorted(numbers), -1]:
        if start >= 0 and number == previous + 1:
            previous = number
            continue
        if start >= 0:
            ranges.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = number
    return ",".join(ranges)


def parse_ranges(text: str) -> set[int]:
    """Parse text from :func:`format_ranges`."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers
