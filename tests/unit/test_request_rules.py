"""What a request line must be: every row of the table in SPEC.md section 5 that one line can break."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.jsonl import MAX_LINE_BYTES, Line
from activities.request_rules import LineChecker
from tests.fakes.worker import CHAT, make_spec, routes
from workflows.types import BatchError, ValidateResult

GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": CHAT,
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
EMBEDDINGS = "/v1/embeddings"


def checker(known_models: frozenset[str] | None = None, **spec: Any) -> LineChecker:
    return LineChecker(make_spec(**spec), routes(known_models))


def check(data: bytes, lines: LineChecker | None = None) -> BatchError | None:
    return (lines or checker()).check(Line(7, 0, len(data) + 1, data)).error


def line(**changes: Any) -> bytes:
    """A good line with members changed, or taken out where the change is ``...``."""
    return json.dumps({key: value for key, value in (GOOD | changes).items() if value is not ...}).encode()


def body(**changes: Any) -> bytes:
    return line(body={key: value for key, value in (GOOD["body"] | changes).items() if value is not ...})


def raw_body(text: str) -> bytes:
    return line(body="@").replace(b'"@"', text.encode())


def test_a_good_line_passes() -> None:
    lines = checker()
    assert lines.check(Line(1, 0, 1, line())) == ("a", None, 0)
    assert lines.only_model == "m"


@pytest.mark.parametrize(
    "data",
    [
        line(extra={"x": 1}),
        body(stream=False),
        body(stream=None),
        body(temperature=1e400, nested={"a": [1, None, "\u2028\x00"]}).replace(b"Infinity", b"1e400"),
        line(url="/chat/completions"),
        line(custom_id=""),
        line(custom_id="\x00é𝄞"),
        raw_body(' \t{ "messages" : [ ] , "model" : "m" } '),
    ],
)
def test_what_is_unusual_and_allowed(data: bytes) -> None:
    assert check(data) is None


MISSING = "missing_required_parameter"


@pytest.mark.parametrize(
    ("data", "code", "param", "text"),
    [
        (line(custom_id=...), MISSING, "custom_id", "Missing required parameter: 'custom_id'."),
        (line(method=...), MISSING, "method", "Missing required parameter: 'method'."),
        (line(url=...), MISSING, "url", "Missing required parameter: 'url'."),
        (line(body=...), MISSING, "body", "Missing required parameter: 'body'."),
        (body(messages=...), MISSING, "body.messages", "Missing required parameter: 'messages'."),
        (body(model=...), MISSING, "body.model", "Missing required parameter: 'model'."),
        (body(model=None), MISSING, "body.model", "Missing required parameter: 'model'."),
        (
            line(custom_id=5),
            "invalid_type",
            "custom_id",
            "Invalid type for 'custom_id': expected a string, but got a number instead.",
        ),
        (
            line(custom_id=None),
            "invalid_type",
            "custom_id",
            "Invalid type for 'custom_id': expected a string, but got null instead.",
        ),
        (line(method="GET"), "invalid_value", "method", "Invalid value: 'GET'. Supported values are: 'POST'."),
        (
            line(method=True),
            "invalid_type",
            "method",
            "Invalid type for 'method': expected a string, but got a boolean",
        ),
        (
            line(url=["x"]),
            "invalid_type",
            "url",
            "Invalid type for 'url': expected a string, but got an array instead.",
        ),
        (
            line(url="/v1/embeddings"),
            "invalid_url",
            "url",
            "The URL '/v1/embeddings' does not match the batch endpoint '/v1/chat/completions'.",
        ),
        (line(url=CHAT + "/"), "invalid_url", "url", "does not match"),
        (line(url="http://x/v1/chat/completions"), "invalid_url", "url", "does not match"),
        (
            line(body="{}"),
            "invalid_type",
            "body",
            "Invalid type for 'body': expected an object, but got a string instead.",
        ),
        (line(body=[]), "invalid_type", "body", "expected an object, but got an array instead."),
        (line(body=None), "invalid_type", "body", "expected an object, but got null instead."),
        (body(model=4), "invalid_type", "body.model", "expected a string, but got a number instead."),
        (body(messages="hi"), "invalid_type", "body.messages", "expected an array, but got a string instead."),
        (
            body(stream=True),
            "streaming_unsupported",
            "body.stream",
            "Chat Completions: Streaming is not supported in the Batch API.",
        ),
    ],
)
def test_one_rule_broken(data: bytes, code: str, param: str, text: str) -> None:
    error = check(data)
    assert error
    assert (error.code, error.param, error.line) == (code, param, 7)
    assert text in error.message


@pytest.mark.parametrize(
    "data",
    [
        raw_body('{"model":"m","messages":["\\ud800"]}'),
        raw_body('{"model":"m","messages":[],"stream":false,"user":"\\udc00\\ud800"}'),
        line(custom_id="@").replace(b"@", b"\\ud83d"),
    ],
    ids=["message", "order", "custom_id"],
)
def test_half_of_a_surrogate_pair_is_json_and_fails_nothing(data: bytes) -> None:
    # JavaScript writes it for an emoji that was cut in two.
    custom_id, error, _ = checker().check(Line(7, 0, len(data), data))
    assert error is None
    assert custom_id


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b"{}{}",
        line() + b" x",
        line()[:-1],
        line().replace(b'"a"', b"NaN"),
        raw_body('{"model":"m","messages":[NaN]}'),
        raw_body('{"model":"m","messages":[Infinity]}'),
        raw_body('{"model":"m","messages":[01]}'),
        raw_body('{"model":"m","messages":[],}'),
        raw_body('{"model":"m","messages":["\\q"]}'),
        raw_body('{"model":"m","messages":["\x01"]}'),
        raw_body('{"model":"m","messages":["raw\nline end"]}'),
        line(custom_id="@").replace(b"@", b"\xff"),
        line(extra="@").replace(b"@", b"\xed\xa0\x80"),  # a surrogate in UTF-8, in a member that nobody reads
        line().decode().encode("utf-16"),
        b"\x00",
        raw_body('{"model":"m","messages":' + "[" * 100_000 + "]" * 100_000 + "}"),
    ],
    ids=range(20),
)
def test_a_line_that_is_not_json_of_utf8(data: bytes) -> None:
    error = check(data)
    expected = BatchError(code="invalid_json_line", message="This line is not parseable as valid JSON.", line=7)
    assert error == expected


def test_a_line_that_is_too_long_to_hold() -> None:
    error = checker().check(Line(7, 0, 20_000_000, None)).error
    assert error
    assert (error.code, error.param, error.line) == ("invalid_request", None, 7)
    assert error.message == f"This line has 20000000 bytes; a line may have at most {MAX_LINE_BYTES}."


@given(st.binary(max_size=200))
def test_any_bytes_get_a_verdict_that_can_cross_temporal(data: bytes) -> None:
    error = check(data)
    assert error
    ValidateResult(errors=[error]).model_dump_json()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([*GOOD, "model", "messages", "stream", "x"]), inner)
        ),
    )
)
def test_any_json_gets_a_verdict(value: Any) -> None:
    check(json.dumps(value).encode())
    check(line(body=value))
    check(json.dumps(GOOD | {"custom_id": value}).encode())


def test_what_a_client_wrote_is_quoted_short() -> None:
    long = "é" * 5000
    for data in (line(method=long), line(url=long), body(model=long)):
        error = check(data, checker(known_models=frozenset({"m"})))
        assert error
        assert len(error.message) < 250


# Between lines


def test_a_custom_id_may_come_once() -> None:
    lines = checker()
    assert check(line(), lines) is None
    assert check(line(custom_id="A"), lines) is None
    for again in (line(), line().replace(b'"a"', b'"\\u0061"')):
        error = check(again, lines)
        assert error
        assert (error.code, error.param) == ("duplicate_custom_id", "custom_id")
        assert "'a' duplicates" in error.message
        assert "unique" in error.message


def test_models_of_one_batch() -> None:
    lines = checker()
    assert check(line(), lines) is None
    assert check(body(model="n").replace(b'"a"', b'"b"'), lines) is None
    assert lines.only_model is None

    strict = checker(mixed_models=False)
    assert check(line(), strict) is None
    error = check(body(model="n").replace(b'"a"', b'"b"'), strict)
    assert error
    assert (error.code, error.param) == ("mismatched_model", "body.model")
    assert "differs from the model of the rest" in error.message
    assert "must be for a single model" in error.message
    assert strict.only_model == "m"


def test_a_model_that_the_upstream_does_not_list() -> None:
    lines = checker(known_models=frozenset({"m"}))
    assert check(line(), lines) is None
    error = check(body(model="gpt").replace(b'"a"', b'"b"'), lines)
    assert error
    assert (error.code, error.param) == ("model_not_found", "body.model")
    assert error.message == "The provided model 'gpt' is not supported by the Batch API."


# Other endpoints


@pytest.mark.parametrize(
    ("endpoint", "content", "param"),
    [
        ("/v1/completions", {"model": "m", "prompt": "x"}, None),
        ("/v1/completions", {"model": "m", "prompt": ["x"]}, None),
        ("/v1/completions", {"model": "m"}, "body.prompt"),
        ("/v1/completions", {"model": "m", "prompt": 5}, "body.prompt"),
        (EMBEDDINGS, {"model": "m", "input": "x"}, None),
        (EMBEDDINGS, {"model": "m"}, "body.input"),
        (EMBEDDINGS, {"model": "m", "input": {}}, "body.input"),
        (EMBEDDINGS, {"model": "m", "messages": []}, None),
        ("/v1/responses", {"model": "m", "input": "x"}, None),
        ("/v1/responses", {"model": "m", "input": [{"role": "user", "content": "x"}]}, None),
        ("/v1/responses", {"model": "m", "prompt": {"id": "pmpt_1"}}, None),
        ("/v1/responses", {"model": "m", "previous_response_id": "resp_1"}, None),
        ("/v1/responses", {"model": "m", "conversation": "conv_1", "input": None}, None),
        ("/v1/responses", {"model": "m"}, "body.input"),
        ("/v1/responses", {"model": "m", "prompt": None}, "body.input"),
        ("/v1/responses", {"model": "m", "input": 5, "prompt": {}}, "body.input"),
        ("/v1/responses", {"input": "x"}, "body.model"),
        ("/v1/responses", {"model": "m", "input": "x", "stream": True}, "body.stream"),
        ("/v1/moderations", {"input": "x"}, None),
        ("/v1/moderations", {"model": "m", "input": [{"type": "text", "text": "x"}]}, None),
        ("/v1/moderations", {"model": "m"}, "body.input"),
        ("/v1/moderations", {"input": 7}, "body.input"),
        ("/v1/images/generations", {}, None),
        ("/v1/images/edits", {"anything": 1}, None),
        ("/v1/videos", {"model": 7}, None),
        ("/v1/score", {"text_1": "a", "text_2": ["b"]}, None),
        ("/v1/score", {"stream": True}, "body.stream"),
    ],
)
def test_each_endpoint_has_its_own_required_members(endpoint: str, content: dict[str, Any], param: str | None) -> None:
    error = check(line(url=endpoint, body=content), checker(endpoint=endpoint))
    assert (error.param if error else None) == param


def test_streaming_is_refused_in_the_words_of_each_endpoint() -> None:
    text = "Streaming is not supported in the Batch API."
    refused = check(body(stream=True))
    assert refused
    assert (refused.code, refused.message) == ("streaming_unsupported", f"Chat Completions: {text}")
    refused = check(line(url="/v1/videos", body={"stream": True}), checker(endpoint="/v1/videos"))
    assert refused
    assert (refused.code, refused.message) == ("streaming_unsupported", text)


def test_a_body_that_is_no_object_is_refused_on_every_endpoint() -> None:
    error = check(line(url="/v1/score", body=[1]), checker(endpoint="/v1/score"))
    assert error
    assert (error.code, error.param) == ("invalid_type", "body")


@pytest.mark.parametrize(
    ("value", "count"),
    [("text", 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2), ([], 0), ("", 1)],
)
def test_embedding_inputs_are_counted(value: Any, count: int) -> None:
    lines = checker(endpoint=EMBEDDINGS)
    assert check(line(url=EMBEDDINGS, body={"model": "m", "input": value}), lines) is None
    assert lines.embedding_inputs == count
