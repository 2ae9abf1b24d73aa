"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from api.logs import REQUEST_ID, JsonFormatter
from tests.fakes.api import open_api

BATCH = "batch_" + "0a" * 16


def line(message: str, *arguments: object, error: Exception | None = None, **attached: Any) -> dict[str, Any]:
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("everbatch.x", logging.WARNING, "x.py", 1, message, arguments, exc_info)
    record.__dict__.update(attached)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_has_its_time_level_logger_and_message() -> None:
    found = line("the store failed at %s", "a\nb")
    assert (found["level"], found["logger"], found["message"]) == ("warning", "everbatch.x", "the store failed at a\nb")
    assert found["time"].endswith("Z")
    assert set(found) == {"time", "level", "logger", "message"}


def test_a_batch_in_the_message_is_its_batch_id() -> None:
    assert line("batch %s is started", BATCH)["batch_id"] == BATCH
    assert line("GET /v1/batches/%s/cancel 200 3 ms", BATCH)["batch_id"] == BATCH


def test_an_activity_tells_its_batch_and_attempt() -> None:
    where = {"workflow_id": BATCH, "activity_id": "shard-3", "attempt": 2, "task_queue": "q"}
    found = line("answers wait to be stored", temporal_activity=where)
    assert (found["batch_id"], found["activity_id"], found["attempt"]) == (BATCH, "shard-3", 2)


def test_a_workflow_tells_its_batch() -> None:
    assert line("a shard ended", temporal_workflow={"workflow_id": BATCH, "attempt": 1})["batch_id"] == BATCH


def test_an_error_has_its_kind_and_trace() -> None:
    found = line("request failed", error=ValueError("x"))
    assert found["error"] == "ValueError"
    assert "ValueError: x" in found["trace"]


async def test_what_is_logged_for_a_request_names_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO, "everbatch.api")
    api = open_api(tmp_path)
    answer = await api.http.get(f"/v1/batches/{BATCH}?secret=canary", headers={"Authorization": "Bearer canary"})
    lines = [json.loads(text) for text in caplog.text.splitlines()]
    found = [one for one in lines if one["logger"].startswith("everbatch")]  # the client may log too
    assert [(one["request_id"], one["batch_id"]) for one in found] == [(answer.headers["x-request-id"], BATCH)]
    assert "canary" not in str(found)
    REQUEST_ID.set("")  # without a server the request runs in this test's own context
