"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from api.http.logs import MAX_A_MINUTE, MAX_OF_TEMPORAL, REQUEST_ID, JsonFormatter, RepeatFilter, TextFormatter
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


def test_an_activity_names_its_batch_and_attempt() -> None:
    where = {"workflow_id": BATCH, "activity_id": "shard-3", "attempt": 2, "task_queue": "q"}
    found = line("answers wait to be stored", temporal_activity=where)
    assert (found["batch_id"], found["activity_id"], found["attempt"]) == (BATCH, "shard-3", 2)


def test_a_workflow_names_its_batch() -> None:
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


def text_lines(message: str, *arguments: object, error: Exception | None = None) -> list[str]:
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("everbatch.x", logging.WARNING, "x.py", 1, message, arguments, exc_info)
    return TextFormatter("%(levelname)s %(name)s: %(message)s").format(record).splitlines()


def test_the_words_of_a_client_are_one_line() -> None:
    forged = "x\n2026-01-01 ERROR all is lost\r\x1b[2J\u2028\x85\x00"
    (only,) = text_lines("no file %s", forged)
    assert only == "WARNING everbatch.x: no file x\\n2026-01-01 ERROR all is lost\\r\\x1b[2J\\u2028\\x85\\x00"
    first, *trace = text_lines("failed", error=ValueError(forged))
    assert first == "WARNING everbatch.x: failed"
    assert all(line.startswith("  | ") for line in trace)


def test_what_is_said_too_often_is_counted() -> None:
    often = RepeatFilter()

    def passes(message: str, at: float) -> str:
        record = logging.LogRecord("everbatch.x", logging.WARNING, "x.py", 1, message, (3,), None)
        record.created = at
        return record.getMessage() if often.filter(record) else ""

    passed = [passes("lost %d", 100.0 + n / 100) for n in range(5000)]
    assert len([text for text in passed if text]) == MAX_A_MINUTE
    assert passes("another %d", 101.0) == "another 3"
    assert passes("lost %d", 161.0) == f"lost 3 ({5000 - MAX_A_MINUTE} more like it in between)"


def test_what_the_sdk_of_temporal_says_is_limited_whatever_its_fields_are() -> None:
    often = RepeatFilter()

    def passes(number: int) -> logging.LogRecord | None:
        message = f"gRPC call poll_{'x' * 900} retried {number} times {{'error': 'Status {number}'}}"
        record = logging.LogRecord("temporalio.core", logging.WARNING, "x.py", 1, message, (), None)
        return record if often.filter(record) else None

    passed = [record for record in map(passes, range(500)) if record]
    assert len(passed) == MAX_OF_TEMPORAL
    assert all(len(record.getMessage()) <= 500 for record in passed)
