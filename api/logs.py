"""Log lines: for people, or as JSON with the ids of requests and batches. Never a body, a key or a header."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from contextvars import ContextVar
from typing import Any, Final, Literal, cast

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The HTTP request that is being answered, for every line that is logged meanwhile."""

_BATCH_ID: Final = re.compile(r"\bbatch_[0-9a-f]{32}\b")


def configure_logging(log_format: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Send the process's log to standard error."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("temporalio.worker", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and the ids that belong to it."""

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
        return json.dumps(line, ensure_ascii=False)


def _ids(record: logging.LogRecord, message: str) -> dict[str, object]:
    ids: dict[str, object] = {}
    if request_id := REQUEST_ID.get():
        ids["request_id"] = request_id
    # The SDK's loggers of workflows and activities attach where they are.
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
