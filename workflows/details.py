"""Texts for the Temporal UI, which is one of the product's user interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from workflows.types import BatchPhase, BatchSpec, BatchStatus, DeleteExpiredResult
from workflows.waits import finalizing_wait, validating_wait
from workflows.webhook_types import WebhookInput

SUMMARY_BYTES = 200
"""Maximum summary length in bytes of UTF-8. The server allows 400 bytes after its own encoding, in which quotes and
non-Latin text take more."""


def cut(text: str, limit: int = SUMMARY_BYTES) -> str:
    """Truncate ``text`` to at most ``limit`` bytes of UTF-8, at a character boundary."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= limit else encoded[: limit - 3].decode("utf-8", "ignore") + "…"


def batch_summary(spec: BatchSpec, lines: int | None) -> str:
    """Return the summary of a batch's workflow.

    ``lines`` is the number of lines in the input, if known. The number of requests is not known this early.
    """
    size = f"{lines} lines" if lines is not None else spec.input_file_id
    return cut(f"{spec.endpoint} · {size} · window {spec.completion_window}")


def batch_details(spec: BatchSpec, status: BatchStatus, upstreams: Sequence[str] = ()) -> str:
    """Return Markdown for the "current details" of the workflow, without any text that a client wrote.

    ``upstreams`` are the names of the upstreams that receive its requests; empty while they are unknown.
    """
    counts = status.counts
    rows = [
        f"**{status.phase}**",
        "",
        _what_goes_on(status),
        "",
        "| | |",
        "|---|---|",
        f"| endpoint | `{spec.endpoint}` |",
        f"| requests | {counts.total} |",
        f"| completed | {counts.completed} |",
        f"| failed | {counts.failed} |",
        f"| completion window | {spec.completion_window} |",
    ]
    if upstreams:
        rows.append(f"| upstreams | {', '.join(upstreams)} |")
    if status.shards_total:
        rows.append(f"| shards | {status.shards_total} |")
    if status.phase is BatchPhase.IN_PROGRESS:
        rows += ["", "Counts are those of finished shards; running shards show theirs in their heartbeats."]
    if status.errors_total:
        first = status.errors[0]
        rows += ["", f"It has {status.errors_total} errors, the first on line {first.line or '-'}: `{first.code}`."]
    return "\n".join(rows)


def _what_goes_on(status: BatchStatus) -> str:
    """Say why the batch waits, as far as the workflow knows; its activities report the other reasons."""
    if status.paused_at is not None and not status.finalizing_at:
        since = datetime.fromtimestamp(status.paused_at, UTC)
        return f"Waiting: the batch is paused since {since:%Y-%m-%d %H:%M} UTC; a user can resume it through the API."
    if status.phase is BatchPhase.VALIDATING:
        return f"Waiting: {validating_wait().text}."
    if status.phase is BatchPhase.IN_PROGRESS:
        return "Under **Pending Activities**, the last failure of each says what its requests wait for."
    if status.finalizing_at and status.outcome is None:
        return f"Waiting: {finalizing_wait().text}."
    return ""


def end_reason(spec: BatchSpec, status: BatchStatus) -> str:
    """Return one line that says why a batch failed or expired, for the failure of its workflow."""
    counts = status.counts
    if status.phase is BatchPhase.EXPIRED:
        done = f"{counts.completed} of {counts.total} requests completed"
        return f"The completion window of {spec.completion_window} ended: {done}."
    if not status.errors:
        return "The batch failed."
    first, more = status.errors[0], max(status.errors_total, len(status.errors)) - 1
    line = f" (line {first.line})" if first.line else ""
    return cut(" ".join(first.message.split())) + line + (f" And {more} more errors." if more else "")


def shard_summary(index: int, total: int, requests: int, label: str) -> str:
    """Return the summary of a shard: its ``label`` if it has one, otherwise its position among ``total`` shards."""
    return cut(label if label else f"shard {index + 1}/{total}, {requests} requests")


def webhook_summary(task: WebhookInput) -> str:
    return cut(f"{task.event} to {', '.join(task.endpoints)}")


def janitor_details(done: DeleteExpiredResult) -> str:
    """Return Markdown for the "current details" of the janitor's workflow."""
    rows = [
        "| | |",
        "|---|---|",
        f"| files deleted | {done.files} |",
        f"| uploads deleted | {done.uploads} |",
        f"| batches cleaned | {done.batches} |",
        f"| batches closed | {done.closed} |",
        f"| not due yet | {done.kept} |",
        f"| failed, to come again | {done.failed} |",
    ]
    return "\n".join(rows)
