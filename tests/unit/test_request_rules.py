"""What a request line must be: every rule that one line can break."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.input.jsonl import Line
from activities.input.request_rules import LineChecker
from activities.upstreams.routes import ModelRoutes
from tests.fakes.worker import CHAT, ONLY_UPSTREAM, make_spec, routes
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
    assert lines.check(Line(1, 0, 1, line()))[:3] == ("a", None, 0)
    assert lines.only_model == "m"


@pytest.mark.parametrize(
    "data",
    [
        line(extra={"x": 1}),
        body(stream=False),
        body(stream=None),
        body(temperature=1e400, nested={"a": [1, None, "\u2028\x00"]}).replace(b"Infinity", b"1e400"),
        line(url="/chat/completions"),
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
        (line(custom_id=""), "invalid_value", "custom_id", "must not be empty"),
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
    custom_id, error, *_ = checker().check(Line(7, 0, len(data), data))
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
    ],
    ids=range(15),
)
def test_a_line_that_is_not_json(data: bytes) -> None:
    error = check(data)
    expected = BatchError(code="invalid_json_line", message="This line is not parseable as valid JSON.", line=7)
    assert error == expected


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (line(custom_id="@").replace(b"@", b"\xff"), "byte 0xFF at position 16"),
        (line(custom_id="@").replace(b"@", b"\xe9"), "Windows-1252"),
        (line(extra="@").replace(b"@", b"\xed\xa0\x80"), "0xED"),  # a surrogate in UTF-8, in a member nobody reads
        (line().decode().encode("utf-16"), "UTF-16"),
        (line().decode().encode("utf-16-be"), "UTF-16"),
        (b"\xef\xbb\xbf" + line(), "byte order mark"),
    ],
    ids=["ff", "cp1252", "surrogate", "utf-16", "utf-16-be", "mark"],
)
def test_a_wrong_encoding_is_named_once(data: bytes, names: str) -> None:
    lines = checker()
    error = check(data, lines)
    assert error
    assert (error.code, error.line) == ("invalid_json_line", 7)
    assert names in error.message
    assert "must be JSON lines in UTF-8" in error.message
    assert check(data, lines) is None


def test_a_line_that_is_too_long_to_hold_is_a_request_all_the_same() -> None:
    lines = checker()
    head = line(custom_id="\ud83d long")
    assert lines.check(Line(7, 0, 20_000_000, None, head)) == ("\ufffd long", None, 0, b"")
    for head in (b"", b"no JSON", b'{"body":{"custom_id":"b"', b'{"custom_id":"cut of'):
        assert lines.check(Line(8, 0, 20_000_000, None, head)) == ("", None, 0, b"")
    error = check(line(custom_id="\ufffd long"), lines)
    assert error
    assert error.code == "duplicate_custom_id"


@pytest.mark.parametrize("stream", [True, 1, "true", "false", [1], {"a": 1}, 0.5])
def test_a_stream_that_may_be_taken_for_true(stream: Any) -> None:
    error = check(body(stream=stream))
    assert error
    assert (error.code, error.param) == ("streaming_unsupported", "body.stream")
    for falsy in ("false", "null", "0", '""', "[]", "{}"):
        assert check(raw_body(f'{{"model":"m","messages":[],"stream":{falsy}}}')) is None


def test_a_fault_of_ours_on_one_line_is_the_error_of_that_line(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ModelRoutes):
        def find(self, model: str) -> int | None:
            raise KeyError(model) if model == "secret" else ValueError

    lines = LineChecker(make_spec(), Broken([ONLY_UPSTREAM], [None]))
    error = check(body(model="secret"), lines)
    assert error
    assert (error.code, error.line) == ("server_error", 7)
    assert "KeyError" in error.message
    assert "secret" not in error.message


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


def test_ids_that_become_equal_by_repair_are_duplicates() -> None:
    lines = checker()
    assert check(line(custom_id="\ud83d"), lines) is None
    error = check(line(custom_id="\udc00"), lines)
    assert error
    assert error.code == "duplicate_custom_id"
    assert "'\ufffd' duplicates" in error.message


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
    assert error.message == "The provided model 'gpt' is not supported by the Batch API. Available models: 'm'."


def test_an_unknown_model_gets_a_message_with_what_it_resembles_and_what_there_is() -> None:
    lines = checker(known_models=frozenset({"llama-3.1-8b", *(f"z-{number:02}" for number in range(30))}))
    error = check(body(model="lama-3.1-8b"), lines)
    assert error
    names = ", ".join(f"'z-{number:02}'" for number in range(19))
    assert error.message == (
        "The provided model 'lama-3.1-8b' is not supported by the Batch API. Did you mean 'llama-3.1-8b'? "
        f"Available models: 'llama-3.1-8b', {names} and 11 more."
    )


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


# Most lines are found good by a quick look; whatever it says is what a close look says


_FEW = st.sampled_from
_BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": _FEW(["m", "m", "other", "", None, 1, "é"]),
        "messages": _FEW([[], [1], [{"role": "user"}], "x", None, {}]),
        "prompt": _FEW(["x", ["x"], None, 1]),
        "input": _FEW(["x", ["x", "y"], [1, 2], None, 1, ""]),
        "stream": _FEW([False, True, None, 0, "", "x"]),
        "n": _FEW([1.5, "\ud83d", "é", {"messages": 1}, "[[[["]),
    },
)
_LINES = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": _FEW(["a", "b", "c" * 41, "c" * 41 + "d", "", None, 3, "\ud83d", "é"]),
        "method": _FEW(["POST", "POST", "POST", "GET", None]),
        "url": _FEW([CHAT, CHAT, CHAT.removeprefix("/v1"), "/v1/embeddings", "/embeddings", "/v1/v1/embeddings", 1]),
        "body": st.one_of(_BODIES, _BODIES, _FEW([None, [], "x"])),
        "more": _FEW([1, "x", None]),
    },
)


@given(st.lists(_LINES, max_size=8), st.sampled_from([CHAT, "/v1/embeddings", "/v1/completions", "/v1/moderations"]))
def test_a_quick_look_and_a_close_one_agree(requests: list[dict[str, Any]], endpoint: str) -> None:
    full: dict[str, Any] = {"model": "m", "messages": [], "prompt": "", "input": ""}
    first = {"custom_id": "first", "method": "POST", "url": endpoint, "body": full}
    data = [json.dumps(request) for request in [first, *requests]]
    lines = [Line(number, 0, len(text), text.encode()) for number, text in enumerate(data, 1)]
    both, close = checker(endpoint=endpoint), checker(endpoint=endpoint)
    assert [both.check(line) for line in lines] == [close._check_closely(line) for line in lines]  # pyright: ignore[reportPrivateUsage]
    assert (both.models, both.embedding_inputs) == (close.models, close.embedding_inputs)


def test_an_ordinary_line_needs_no_close_look(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = checker()
    assert not check(line(), lines)  # names the model
    monkeypatch.setattr(lines, "_check_closely", None)
    assert not check(line(custom_id="b", more="\ud83d"), lines)
