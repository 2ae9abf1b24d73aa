"""The lines of the result files, each kind, to the byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.results.output_lines import OutputLines
from activities.upstreams.answers import Answer, Verdict
from tests.fakes.worker import BATCH, refusal, reply
from workflows.ids import request_id_prefix
from workflows.types import MissingReason, Usage

LINES = OutputLines(BATCH)
ID = f"{request_id_prefix(BATCH)}0000002a"
HEAD = f'{{"id":"batch_req_{ID}","custom_id":"a"'.encode()


def test_success() -> None:
    answer = reply(200, b'{"x":  1.50}', x_request_id='up"1')
    response = rb'{"status_code":200,"request_id":"up\"1","body":{"x":  1.50}}'
    assert LINES.success(42, b'"a"', answer) == HEAD + b',"response":' + response + b',"error":null}\n'


def test_a_refusal_fills_both_members() -> None:
    answer = reply(404, {"error": {"message": "no\nsuch", "type": "t", "param": None, "code": "gone"}})
    response = b'{"status_code":404,"request_id":"req_%b","body":%b}' % (ID.encode(), answer.body)
    error = rb'{"code":"gone","message":"no\nsuch"}'
    assert LINES.error(42, b'"a"', answer) == HEAD + b',"response":' + response + b',"error":' + error + b"}\n"


def test_strict_lines_leave_the_error_of_an_http_answer_null() -> None:
    strict = OutputLines(BATCH, strict=True)
    answer = reply(404, {"error": {"message": "no", "type": "t", "param": None, "code": "gone"}})
    response = b'{"status_code":404,"request_id":"req_%b","body":%b}' % (ID.encode(), answer.body)
    assert strict.error(42, b'"a"', answer) == HEAD + b',"response":' + response + b',"error":null}\n'
    # Where there is no answer there is nothing but the error to say so.
    silent = Answer(Verdict.RETRY, code="request_timeout", message="why")
    assert strict.error(42, b'"a"', silent) == LINES.error(42, b'"a"', silent)
    for reason in MissingReason:
        assert strict.missing(42, b'"a"', reason) == LINES.missing(42, b'"a"', reason)
    assert strict.success(42, b'"a"', reply()) == LINES.success(42, b'"a"', reply())


@pytest.mark.parametrize("code", ["request_timeout", "connection_error", "server_error"])
def test_without_an_http_answer_the_response_is_null(code: str) -> None:
    line = LINES.error(42, b'"a"', Answer(Verdict.RETRY, code=code, message="why"))
    assert line == HEAD + b',"response":null,"error":{"code":"%b","message":"why"}}\n' % code.encode()


@pytest.mark.parametrize(
    ("reason", "code", "message"),
    [
        (
            MissingReason.EXPIRED,
            "batch_expired",
            "This request could not be executed before the completion window expired.",
        ),
        (
            MissingReason.CANCELLED,
            "batch_cancelled",
            "This request was not executed because the batch was cancelled.",
        ),
        (
            MissingReason.FAILED,
            "batch_failed",
            "This request was not executed because the batch failed.",
        ),
    ],
)
def test_not_run(reason: MissingReason, code: str, message: str) -> None:
    error = f'{{"code":"{code}","message":"{message}"}}'.encode()
    assert LINES.missing(42, b'"a"', reason) == HEAD + b',"response":null,"error":' + error + b"}\n"


def test_keys_are_those_of_openai_in_their_order() -> None:
    lines = [
        LINES.success(1, b'"a"', reply()),
        LINES.error(1, b'"a"', refusal(400)),
        LINES.missing(1, b'"a"', MissingReason.EXPIRED),
    ]
    for line in lines:
        assert list(json.loads(line)) == ["id", "custom_id", "response", "error"]
    for line in lines[:2]:
        assert list(json.loads(line)["response"]) == ["status_code", "request_id", "body"]
    for line in lines[1:]:
        assert list(json.loads(line)["error"]) == ["code", "message"]


def test_ids_are_unique_and_the_same_each_time() -> None:
    ids = {json.loads(LINES.success(number, b'"a"', reply()))["id"] for number in (1, 2, 16, 50_000, 10**7)}
    assert len(ids) == 5
    again = json.loads(OutputLines(BATCH).success(1, b'"b"', reply()))["id"]
    assert again in ids
    assert again not in {json.loads(OutputLines("batch_2").success(1, b'"a"', reply()))["id"]}


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner))


@given(st.text(), st.dictionaries(st.text(), json_values, max_size=4), st.text(), st.booleans())
def test_what_others_wrote_goes_in_byte_for_byte(
    custom_id: str, body: dict[str, object], message: str, ascii_only: bool
) -> None:
    raw_id = json.dumps(custom_id, ensure_ascii=ascii_only).encode()
    raw_body = json.dumps(body).encode()
    answer = Answer(Verdict.FINAL, 400, raw_body, message, Usage(), "code", message)
    for line in (LINES.success(1, raw_id, answer), LINES.error(1, raw_id, answer)):
        assert b'"custom_id":' + raw_id + b"," in line or not raw_id.isascii()
        assert b'"body":' + raw_body + b"}" in line
        assert line.isascii()
        assert line.endswith(b"}\n")
        assert len(line.decode().splitlines()) == 1
        parsed = json.loads(line)
        assert (parsed["custom_id"], parsed["response"]["body"]) == (custom_id, body)
