"""Log lines: text for people, or JSON with the ids of requests and batches. Never a body, a key or a header."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from contextvars import ContextVar
from typing import Any, Final, Literal, cast

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""Id of the HTTP request that is being handled, for every line that is logged meanwhile."""

MINUTE: Final = 60.0
MAX_A_MINUTE: Final = 60
"""Maximum number of warnings and errors of one kind per minute."""
MAX_OF_TEMPORAL: Final = 2
"""Maximum number of such lines from Temporal's SDK, which logs every failed poll while Temporal is down."""
MAX_TEMPORAL_LENGTH: Final = 500
KINDS: Final = 1000
"""Maximum number of kinds of messages that are counted at once."""
_TEMPORAL: Final = "temporalio"
_VARIES: Final = re.compile(r"\{.*|[0-9a-f-]*[0-9][0-9a-f-]*")
"""Matches what differs between lines of one kind of Temporal's SDK: fields, ids and numbers."""
_BATCH_ID: Final = re.compile(r"\bbatch_[0-9a-f]{32}\b")


def configure_logging(log_format: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Send the log of this process to standard error."""
    handler = logging.StreamHandler()
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("temporalio.worker").setLevel(logging.WARNING)
    # Both log a warning for each malformed request or byte of a form, with which clients could fill the log. Such
    # requests get an error response and are counted.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    handler.addFilter(RepeatFilter())


class RepeatFilter(logging.Filter):
    """Limits warnings and errors of one kind per minute, and then reports how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, object], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind, maximum = (record.name, record.msg), MAX_A_MINUTE
        if record.name.startswith(_TEMPORAL):
            record.msg, record.args = record.getMessage()[:MAX_TEMPORAL_LENGTH], ()
            kind, maximum = (record.name, _VARIES.sub("", record.msg)), MAX_OF_TEMPORAL
        begun_at, count = self._kinds.get(kind, (record.created, 0))
        if record.created - begun_at >= MINUTE:
            if count > maximum:
                record.msg = f"{record.getMessage()} ({count - maximum} more like it in between)"
                record.args = ()
            begun_at, count = record.created, 0
        if len(self._kinds) >= KINDS:
            self._kinds.clear()
        self._kinds[kind] = begun_at, count + 1
        return count < maximum


class TextFormatter(logging.Formatter):
    """Writes one line per message, and escapes everything that would begin another line or move a cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        trace = super().formatException(ei)
        return "\n".join(f"  | {_printable(line)}" for line in trace.split("\n"))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


class JsonFormatter(logging.Formatter):
    """Writes one JSON object per line: ``time``, ``level``, ``logger``, ``message``, and the ids that belong to it."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **_ids(record, message),
        }
        if record.exc_info and record.exc_info[1]:
            line["error"] = type(record.exc_info[1]).__name__
            line["trace"] = "".join(traceback.format_exception(record.exc_info[1]))
        # ASCII rather than UTF-8: some readers take U+2028 for a line end, and a lone surrogate cannot be encoded.
        return json.dumps(line)


def _ids(record: logging.LogRecord, message: str) -> dict[str, object]:
    ids: dict[str, object] = {}
    if request_id := REQUEST_ID.get():
        ids["request_id"] = request_id
    # The SDK's loggers of workflows and activities attach the ids of the workflow or activity.
    temporal = cast(
        "dict[str, object]", getattr(record, "temporal_activity", None) or getattr(record, "temporal_workflow", {})
    )
    for name in ("activity_id", "attempt"):
        if name in temporal:
            ids[name] = temporal[name]
    batch = _BATCH_ID.search(str(temporal.get("workflow_id", ""))) or _BATCH_ID.search(message)
    if batch:
        ids["batch_id"] = batch[0]
    return ids
