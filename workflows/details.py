"""Texts for the Temporal UI, which is one of the product's user interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from workflows.types import BatchPhase, BatchSpec, BatchStatus, DeleteExpiredResult
from workflows.waits import finalizing_wait, validating_wait
from workflows.webhook_types import WebhookInput

SUMMARY_BYTES = 200
"""The server allows 400 after encoding; quotes and non-Latin text take more there than here."""


def cut(text: str, limit: int = SUMMARY_BYTES) -> str:
    """Cut to so many bytes of UTF-8, at a character."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= limit else encoded[: limit - 3].decode("utf-8", "ignore") + "…"


def batch_summary(spec: BatchSpec, lines: int | None) -> str:
    """Args: ``lines`` are those of the input, where it is known; how many are requests is not yet."""
    size = f"{lines} lines" if lines is not None else spec.input_file_id
    return cut(f"{spec.endpoint} · {size} · window {spec.completion_window}")


def batch_details(spec: BatchSpec, status: BatchStatus, upstreams: Sequence[str] = ()) -> str:
    """Markdown for the "current details" of the workflow. Holds nothing that a client wrote.

    Args: ``upstreams`` are the names of those that its requests go to, where that is known.
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
    """What the workflow itself knows of why the batch waits; the rest is known to its activities."""
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
    """Why a batch failed or expired, in one line for the failure of its workflow."""
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
    """A request is called by its ``custom_id``, a group by its place."""
    return cut(label if label else f"shard {index + 1}/{total}, {requests} requests")


def webhook_summary(task: WebhookInput) -> str:
    return cut(f"{task.event} to {', '.join(task.endpoints)}")


def janitor_details(done: DeleteExpiredResult) -> str:
    """Markdown for the "current details" of the janitor."""
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
