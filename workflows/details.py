"""Texts for the Temporal UI, which is one of the product's user interfaces."""

from __future__ import annotations

from workflows.types import BatchPhase, BatchSpec, BatchStatus, DeleteExpiredResult, WebhookInput

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


def batch_details(spec: BatchSpec, status: BatchStatus) -> str:
    """Markdown for the "current details" of the workflow. Holds nothing that a client wrote."""
    counts = status.counts
    rows = [
        f"**{status.phase}**",
        "",
        "| | |",
        "|---|---|",
        f"| endpoint | `{spec.endpoint}` |",
        f"| requests | {counts.total} |",
        f"| completed | {counts.completed} |",
        f"| failed | {counts.failed} |",
        f"| completion window | {spec.completion_window} |",
    ]
    if status.shards_total:
        rows.append(f"| shards | {status.shards_total} |")
    if status.phase is BatchPhase.IN_PROGRESS:
        rows += ["", "Counts are those of finished shards; running shards show theirs in their heartbeats."]
    if status.errors_total:
        rows += ["", f"The input has {status.errors_total} errors, the first on line {status.errors[0].line or '-'}."]
    return "\n".join(rows)


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
        f"| not due yet | {done.kept} |",
        f"| failed, to come again | {done.failed} |",
    ]
    return "\n".join(rows)
