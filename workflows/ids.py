"""Derives ids without side effects, so that whatever runs twice creates the same object."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Sequence
from typing import Any, Final, Literal

ResultKind = Literal["output", "error"]
"""Which of a batch's result files."""

_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BATCH_ID: Final = re.compile(r"batch_[0-9a-f]{32}")
_RESULT_FILE_ID: Final = re.compile(r"file-([oe])([0-9A-Za-z]{23})")


def _hex(*parts: str, length: int = 32) -> str:
    # NUL cannot be in a tenant or an id, so no two lists of parts read alike.
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:length]


def batch_id_for_key(tenant: str, idempotency_key: str) -> str:
    """The batch (and workflow) id that a tenant's idempotency key stands for."""
    return "batch_" + _hex("batch", tenant, idempotency_key)


def file_id_for_key(tenant: str, idempotency_key: str) -> str:
    """The id of the file that a tenant uploads under an idempotency key."""
    return "file-" + _hex("upload", tenant, idempotency_key, length=24)


def file_id_for_upload(upload_id: str, part_ids: Sequence[str]) -> str:
    """The id of the file that an upload becomes by these parts in this order."""
    return "file-" + _hex("parts", upload_id, *part_ids, length=24)


def is_batch_id(text: str) -> bool:
    """Whether it is an id as the API makes them."""
    return _BATCH_ID.fullmatch(text) is not None


def result_file_id(batch_id: str, kind: ResultKind) -> str:
    """The id of a result file: its kind, and the batch's number in 23 letters and digits."""
    number = int(batch_id[6:] if is_batch_id(batch_id) else _hex("file", batch_id), 16)
    digits = ""
    while len(digits) < 23:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return f"file-{kind[0]}{digits}"


def batch_of_result_file(file_id: str) -> tuple[str, ResultKind] | None:
    """The inverse of :func:`result_file_id`; ``None`` for an id that no result file has."""
    match = _RESULT_FILE_ID.fullmatch(file_id)
    if not match:
        return None
    number = 0
    for digit in match[2]:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    return (f"batch_{number:032x}", "output" if match[1] == "o" else "error") if number < 1 << 128 else None


def request_id_prefix(batch_id: str) -> str:
    """Twenty-four hex digits of a batch; with a line number of eight they make a request's id."""
    return _hex("request", batch_id, length=24)


def webhook_workflow_id(batch_id: str) -> str:
    return f"webhook-{batch_id}"


def event_id(batch_id: str) -> str:
    """Of the event that a batch has ended, of which there is one."""
    return "evt_" + _hex("event", batch_id)


def webhook_id(batch_id: str, endpoint: str) -> str:
    """Of the event on its way to one endpoint, the same however often it is sent."""
    return "wh_" + _hex("webhook", batch_id, endpoint)


def create_digest(parameters: dict[str, Any]) -> str:
    """Digest of what a client asked to create. Order of keys does not count; ``None`` and ``{}`` differ."""
    return _hex(json.dumps(parameters, sort_keys=True, ensure_ascii=True))


def format_ranges(numbers: set[int]) -> str:
    """``{0, 1, 2, 5}`` as ``0-2,5``: short for what fills up from one end, and readable in the Temporal UI."""
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
    """The inverse of :func:`format_ranges`."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers
