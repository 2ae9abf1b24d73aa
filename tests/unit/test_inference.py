"""What the answers of an inference server mean: docs/failures.md as a table."""

from __future__ import annotations

import json
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.upstreams.answer_bodies import one_line, read_body
from activities.upstreams.answers import Verdict, classify, retry_after
from tests.fakes.worker import reply
from workflows.contract import MAX_RETRY_DELAY
from workflows.types import Usage

NOW = 1_700_000_000.0
ERROR: dict[str, Any] = {"error": {"message": "words", "type": "some_error", "param": None, "code": None}}


@pytest.mark.parametrize(
    ("verdict", "statuses"),
    [
        (Verdict.FINAL, [400, 402, 403, 404, 405, 410, 413, 415, 422, 451, 499]),
        (Verdict.RETRY, [401, 408, 409, 425, 500, 501, 502, 504, 520, 529, 599]),
        (Verdict.OVERLOADED, [429, 503]),
    ],
)
def test_what_a_status_means(verdict: Verdict, statuses: list[int]) -> None:
    for status in statuses:
        for body in (ERROR, b"<html>", b""):
            answer = reply(status, body, x_request_id="up-1")
            # A page is a proxy's, and so nothing final, whatever its status.
            meant = Verdict.RETRY if verdict is Verdict.FINAL and body is not ERROR else verdict
            assert (answer.verdict, answer.status, answer.request_id) == (meant, status, "up-1")
            assert answer.usage is None
            assert answer.reason.startswith(f"HTTP {status}")
            assert json.loads(answer.body)["error"]


def test_a_refusal_in_words_is_final_whatever_its_status_says() -> None:
    words = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
    body = {"error": {"code": 500, "message": words, "type": "server_error"}}
    answer = reply(500, body)
    assert (answer.verdict, answer.code, answer.message) == (Verdict.FINAL, "server_error", words)
    for status, said in ((500, "CUDA error: operation not permitted"), (502, words), (503, words)):
        assert reply(status, {"error": {"message": said}}).verdict is not Verdict.FINAL
    assert reply(500, words.encode()).verdict is Verdict.RETRY  # a proxy's page


@pytest.mark.parametrize("status", [200, 201, 202])
def test_success(status: int) -> None:
    answer = reply(status, {"usage": {"prompt_tokens": 3}}, x_request_id="up-1")
    assert (answer.verdict, answer.status, answer.request_id) == (Verdict.SUCCESS, status, "up-1")
    assert answer.usage == Usage(input_tokens=3)
    assert json.loads(answer.body) == {"usage": {"prompt_tokens": 3}}


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'"x"', b"null", b"{", b"{}x", b'{"a":NaN}', b'{"a":-Infinity}', b"[" * 100_000]
)
def test_a_success_that_is_no_json_object_is_tried_again(body: bytes) -> None:
    answer = reply(200, body)
    assert (answer.verdict, answer.status, answer.body) == (Verdict.RETRY, 0, b"")
    assert (answer.code, answer.message) == ("server_error", "The inference server's answer was not a JSON object.")
    assert answer.reason == "HTTP 200 with a body that is not JSON"


def test_reasons_are_our_words_only() -> None:
    for status in (400, 429, 500, 599):
        answer = reply(status, {"error": {"message": "secret", "type": "secret", "code": "secret"}})
        assert "secret" not in answer.reason
    assert reply(503).reason == "HTTP 503 Service Unavailable"
    assert reply(599).reason == "HTTP 599"


# Retry-After


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "-1"}, None),
        ({"retry-after": "99999999"}, MAX_RETRY_DELAY.total_seconds()),
        ({"retry-after-ms": "inf"}, MAX_RETRY_DELAY.total_seconds()),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAX_RETRY_DELAY.total_seconds()),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,5} [0-9:]{1,8} [A-Z+0-9]*"))
def test_no_retry_after_brings_it_down(value: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        wait = retry_after({name: value}, NOW)
        assert wait is None or 0 < wait <= MAX_RETRY_DELAY.total_seconds()


def test_a_final_answer_asks_for_no_wait() -> None:
    assert classify(400, {"retry-after": "7"}, b"{}", NOW).retry_after is None
    for status in (401, 429, 500, 503):
        assert classify(status, {"retry-after": "7"}, b"{}", NOW).retry_after == 7.0


# Usage


def read_usage(body: bytes) -> Usage | None:
    read = read_body(body)
    return read.usage if read else None


def usage(value: Any) -> Usage | None:
    return read_usage(json.dumps({"usage": value, "x": 1}).encode())


def test_usage_of_each_endpoint() -> None:
    chat = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    expected = Usage(input_tokens=10, cached_tokens=4, output_tokens=5, reasoning_tokens=2)
    assert usage(chat) == expected
    responses = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    assert usage(responses) == expected
    assert usage({"prompt_tokens": 8, "total_tokens": 8}) == Usage(input_tokens=8)  # embeddings
    messages = {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1, "output_tokens": 2}
    assert usage(messages) == Usage(input_tokens=8, cached_tokens=4, output_tokens=2)
    vllm = {"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": None}
    assert usage(vllm) == Usage(input_tokens=8, output_tokens=2)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [],
        "many",
        5,
        {"prompt_tokens": None},
        {"prompt_tokens": "ten"},
        {"prompt_tokens": 1.5},
        {"prompt_tokens_details": []},
        {"prompt_tokens": 10**30},
        {"prompt_tokens": -5},
    ],
)
def test_a_usage_that_says_nothing_is_zero(value: Any) -> None:
    assert usage(value) == Usage()


@pytest.mark.parametrize("odd", [[], "many", -5, 1.5, {}, None, True, 10**30])
def test_one_odd_member_takes_nothing_from_the_others(odd: Any) -> None:
    good = {"prompt_tokens": 10.0, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    assert usage(good) == Usage(input_tokens=10, cached_tokens=4, output_tokens=5)
    assert usage(good | {"prompt_tokens": odd}) == Usage(cached_tokens=4, output_tokens=5)
    assert usage(good | {"completion_tokens": odd}) == Usage(input_tokens=10, cached_tokens=4)
    assert usage(good | {"prompt_tokens_details": odd}) == Usage(input_tokens=10, output_tokens=5)
    assert usage(good | {"prompt_tokens_details": {"cached_tokens": odd}}) == Usage(input_tokens=10, output_tokens=5)
    messages = {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1, "output_tokens": odd}
    assert usage(messages) == Usage(input_tokens=8, cached_tokens=4)


def test_no_usage_is_zero_and_no_object_is_none() -> None:
    assert read_usage(b"{}") == Usage()
    assert read_usage(b' {"a": [1, {"usage": 5}]} \n') == Usage()
    assert read_usage(b'{"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}") == Usage()
    for body in (b"", b"[]", b"{", b'{"usage":{},}', b'{"usage":{"prompt_tokens":1}} x'):
        assert read_usage(body) is None


@given(st.binary(max_size=60))
def test_any_bytes_get_a_meaning(body: bytes) -> None:
    for status in (200, 400, 429, 500):
        answer = classify(status, {}, body, NOW)
        assert b"\n" not in answer.body
        if answer.body:
            assert isinstance(json.loads(answer.body), dict)


# The body on one line


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b'{"a":1}', b'{"a":1}'),
        (b' {\n "a": "x\\ny",\r\n "b":  2\n}\n', b'{  "a": "x\\ny",   "b":  2 }'),
    ],
)
def test_a_body_on_one_line(body: bytes, line: bytes) -> None:
    assert one_line(body) == line
    assert json.loads(line) == json.loads(body)


# What an error answer says


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"error": {"message": "m", "type": "t", "param": None, "code": "c"}}, "c", "m"),
        ({"error": {"message": "m", "type": "t", "param": None, "code": None}}, "t", "m"),
        ({"error": {"message": "m", "type": "t", "code": 404}}, "t", "m"),
        ({"error": {"message": "m", "code": "404"}}, "http_400", "m"),
        ({"error": {"message": ["m"], "type": 7, "code": "c"}}, "c", None),
        ({"error": {"message": "m"}}, "http_400", "m"),
        ({"error": {}}, "http_400", None),
        (
            {"object": "error", "message": "m", "type": "BadRequestError", "param": None, "code": 400},
            "BadRequestError",
            "m",
        ),
        (
            {"object": "error", "message": "This model's maximum context length is 10 tokens.", "code": 400},
            *("context_length_exceeded", "This model's maximum context length is 10 tokens."),
        ),
        (
            {"error": {"code": 400, "message": "the request exceeds the available context size", "type": "t"}},
            *("context_length_exceeded", "the request exceeds the available context size"),
        ),
        ({"detail": "Not Found"}, "http_400", "Not Found"),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, "http_400", None),
        ({"error": "just words"}, "http_400", "just words"),
        ({"error": None}, "http_400", None),
        ({"message": {"not": "text"}}, "http_400", None),
        ({}, "http_400", None),
    ],
)
def test_error_answers_in_json(body: dict[str, Any], code: str, message: str | None) -> None:
    answer = reply(400, body)
    assert answer.code == code
    assert answer.message == (message or "The inference server answered HTTP 400 Bad Request.")
    assert json.loads(answer.body) == body  # as it came


@pytest.mark.parametrize(
    "body",
    [b"plain words\non two lines", b"<html><body>Bad Gateway</body></html>", b'["a"]', b"\xff\xfe", b"", b"x" * 10**6],
)
def test_error_answers_that_are_no_json_object_are_wrapped(body: bytes) -> None:
    answer = reply(400, body)
    error = json.loads(answer.body)["error"]
    assert error == {
        "message": body[:4096].decode("utf-8", "replace").strip(),
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert (answer.code, answer.message) == ("http_400", "The inference server answered HTTP 400 Bad Request.")
    assert len(answer.body) < 20_000


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_wrong_address_and_no_answer(status: int) -> None:
    answer = classify(status, {"location": "https://elsewhere/v1"}, b"", 0.0)
    assert answer.verdict is Verdict.RETRY
    assert answer.reason.startswith(f"HTTP {status}")


@pytest.mark.parametrize("half", [b"\\ud83d", b"\\uDE00", b"\xff", b"\xed\xa0\x80"])
def test_half_of_a_character_in_an_answer_is_repaired(half: bytes) -> None:
    body = (
        b'{"choices":["\\\\ud83d \\ud83d\\ude00 \xc3\xa9 %b"],"usage":{"prompt_tokens":3,"completion_tokens":4}}' % half
    )
    answer = reply(200, body)
    assert (answer.verdict, answer.usage) == (Verdict.SUCCESS, Usage(input_tokens=3, output_tokens=4))
    read = json.loads(answer.body)["choices"][0]
    assert read.rstrip("\ufffd") == "\\ud83d 😀 é "
    assert read.endswith("\ufffd")


ERROR_502: dict[str, Any] = {"error": {"message": "Provider returned error", "code": 502}}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (ERROR_502, 502),
        (ERROR_502 | {"choices": None}, 502),
        (ERROR_502 | {"id": "x", "usage": {"prompt_tokens": 1}}, 502),
        ({"error": {"message": "m", "code": "429"}}, 429),
        ({"error": {"message": "m", "code": 404}}, 404),
        ({"error": {"message": "m", "code": 200}}, 500),
        ({"error": {"message": "m", "code": "rate_limit"}}, 500),
        ({"error": {"message": "m", "type": "t"}}, 500),
        ({"error": {}}, 500),
        ({"error": "words"}, 500),
    ],
)
def test_an_error_in_a_success_is_judged_as_that_error(body: dict[str, Any], status: int) -> None:
    answer, plain = reply(200, body), reply(status, body)
    assert (answer.verdict, answer.status, answer.usage) == (plain.verdict, status, None)
    assert (answer.code, answer.message, answer.body) == (plain.code, plain.message, plain.body)
    assert answer.reason == f"HTTP 200 with an error of {status} in it"


@pytest.mark.parametrize(
    "body",
    [
        {"object": "response", "error": None, "output": [1]},
        {"object": "response", "error": {"code": "server_error", "message": "m"}, "output": [1]},
        {"error": {"message": "m"}, "choices": [1]},
        {"error": {"message": "m"}, "data": [1]},
        {"error": {"message": "m"}, "results": [1]},
        {"error": None},
        {"error": ""},
        {"error": False},
        {"id": "x"},
    ],
)
def test_an_answer_that_has_an_error_member_is_an_answer(body: dict[str, Any]) -> None:
    assert reply(200, body).verdict is Verdict.SUCCESS


def test_a_request_id_that_is_not_ascii_is_not_taken() -> None:
    assert classify(200, {"x-request-id": "\udcff"}, b"{}", 0.0).request_id == ""
