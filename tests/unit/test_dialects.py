"""What each dialect makes of a request: the body that is sent, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.raw_json import raw_bytes, raw_object
from activities.upstreams.dialects import DIALECTS, azure, nim
from tests.fakes.nim import why_refused

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PNG = "iVBORw0KGgo="
SCHEMA = '{"type":"object","properties":{"n":{"type":"number","maximum":1.0}}}'

WANTED = '{"type":"json_schema","json_schema":{"name":"a","strict":true,"schema":' + SCHEMA + "}}"


def sent(body: str, endpoint: str = CHAT) -> str:
    members = raw_object(body.encode())
    assert members is not None
    return raw_bytes(nim.nim_body(endpoint, members)).decode()


def chat_of(parts: str) -> str:
    return '{"messages":[{"role":"user","content":[' + parts + "]}]}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # top_k and repetition_penalty
        ('{"model":"m"}', '{"model":"m","nvext":{"top_k":-1}}'),
        ('{"temperature":0.0}', '{"temperature":0.0,"nvext":{"top_k":-1}}'),
        ('{"top_p":0.9,"top_k":null}', '{"top_p":0.9,"nvext":{"top_k":-1}}'),
        ('{"top_k":40,"model":"m"}', '{"model":"m","nvext":{"top_k":40}}'),
        ('{"top_k":-1}', '{"nvext":{"top_k":-1}}'),
        ('{"repetition_penalty":1.10}', '{"nvext":{"top_k":-1,"repetition_penalty":1.10}}'),
        ('{"repetition_penalty":null}', '{"nvext":{"top_k":-1}}'),
        # a client's own nvext wins
        ('{"nvext":{"top_k":5}}', '{"nvext":{"top_k":5}}'),
        ('{"top_k":3,"nvext":{"top_k":5,"x":[1e2]}}', '{"nvext":{"top_k":5,"x":[1e2]}}'),
        ('{"top_k":3,"nvext":null}', '{"nvext":{"top_k":3}}'),
        ('{"nvext":"odd"}', '{"nvext":"odd"}'),
        # response_format
        (
            '{"response_format":' + WANTED + "}",
            '{"nvext":{"top_k":-1,"guided_json":@}}'.replace("@", SCHEMA),
        ),
        (
            '{"response_format":' + WANTED + ',"nvext":{"guided_json":{}}}',
            '{"nvext":{"top_k":-1,"guided_json":{}}}',
        ),
        (
            '{"response_format":{"type":"json_object"}}',
            '{"response_format":{"type":"json_object"},"nvext":{"top_k":-1}}',
        ),
        ('{"response_format":{"type":"text"}}', '{"response_format":{"type":"text"},"nvext":{"top_k":-1}}'),
        ('{"response_format":null}', '{"response_format":null,"nvext":{"top_k":-1}}'),
        # tools
        ('{"tool_choice":"auto"}', '{"nvext":{"top_k":-1}}'),
        ('{"tool_choice":"none","tools":null}', '{"tools":null,"nvext":{"top_k":-1}}'),
        ('{"tool_choice":"none","tools":[ ]}', '{"tools":[ ],"nvext":{"top_k":-1}}'),
        (
            '{"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required"}',
            '{"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required","nvext":{"top_k":-1}}',
        ),
        (
            '{"messages":[{"role":"assistant","tool_calls":[{"id":"c","function":{"arguments":"{\\"a\\": 1}"}}]},'
            '{"role":"tool","tool_call_id":"c","content":"2"}]}',
            '{"messages":[{"role":"assistant","tool_calls":[{"id":"c","function":{"arguments":"{\\"a\\": 1}"}}]},'
            '{"role":"tool","tool_call_id":"c","content":"2"}],"nvext":{"top_k":-1}}',
        ),
        # what OpenAI has goes through as it is, and so does what nobody knows
        (
            '{"n":2,"max_tokens":7,"temperature":1.0,"top_p":1,"stop":["a"],"seed":123456789012345678901234567890,'
            '"logprobs":true,"top_logprobs":3,"unheard_of":{"é":1.50}}',
            '{"n":2,"max_tokens":7,"temperature":1.0,"top_p":1,"stop":["a"],"seed":123456789012345678901234567890,'
            '"logprobs":true,"top_logprobs":3,"unheard_of":{"é":1.50},"nvext":{"top_k":-1}}',
        ),
    ],
)
def test_nim(body: str, expected: str) -> None:
    assert sent(body) == expected


def as_url(parts: str) -> str:
    (part,) = json.loads(sent(chat_of(parts)))["messages"][0]["content"]
    assert part["type"] == "image_url"
    return part["image_url"]["url"]


@pytest.mark.parametrize(
    ("part", "url"),
    [
        ('{"type":"image_url","image_url":{"url":"@"}}', "data:image/png;base64,@"),
        ('{"type":"image_url","image_url":"@"}', "data:image/png;base64,@"),
        ('{"type":"image_url","image_url":{"url":"@","media_type":"image/webp"}}', "data:image/webp;base64,@"),
        ('{"type":"image_url","image_url":{"url":"@"},"mime_type":"image/tiff"}', "data:image/tiff;base64,@"),
        ('{"type":"image","data":"@","mime_type":"image/gif"}', "data:image/gif;base64,@"),
        ('{"type":"image","image":{"data":"@"}}', "data:image/png;base64,@"),
        (
            '{"type":"image","source":{"type":"base64","media_type":"image/avif","data":"@"}}',
            "data:image/avif;base64,@",
        ),
    ],
)
def test_nim_gets_raw_base64_as_a_data_url(part: str, url: str) -> None:
    assert as_url(part.replace("@", PNG)) == url.replace("@", PNG)


@pytest.mark.parametrize(
    ("data", "kind"),
    [("/9j/4AAQ", "jpeg"), ("R0lGODlh", "gif"), ("UklGRiQA", "webp"), ("Qk0", "bmp"), ("AAAA", "jpeg")],
)
def test_nim_gets_the_media_type_that_the_data_begin_like(data: str, kind: str) -> None:
    assert (
        as_url('{"type":"image_url","image_url":{"url":"@"}}'.replace("@", data)) == f"data:image/{kind};base64,{data}"
    )


@pytest.mark.parametrize("url", ["https://h/a.png", "http://h/", "data:image/png;base64,AA", "s3://b/k", "HTTPS://h"])
def test_nim_gets_urls_as_they_are(url: str) -> None:
    image = '{"type":"image_url","image_url":{"url": "@","detail":"low"}}'.replace("@", url)
    body = chat_of('{"type":"text","text":"image?"},' + image)
    assert sent(body) == body[:-1] + ',"nvext":{"top_k":-1}}'
    assert as_url('{"type":"image","source":{"type":"url","url":"@"}}'.replace("@", url)) == url


@pytest.mark.parametrize(
    "messages",
    ['"image"', "[5,null]", '[{"content":"image"}]', '[{"content":[5,{"type":"image"},{"type":"image_url"}]}]', "[[]]"],
)
def test_nim_is_left_to_refuse_what_is_no_message(messages: str) -> None:
    assert sent('{"messages":' + messages + "}") == '{"messages":' + messages + ',"nvext":{"top_k":-1}}'


def test_nim_keeps_what_an_image_part_has_beside() -> None:
    part = '{"type":"image_url","image_url":{"url":"@","detail":"high"},"x":1.0}'
    body = sent(chat_of(part.replace("@", PNG)))
    assert part.replace("@", f"data:image/png;base64,{PNG}") in body


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1.0, "b":"\\u00e9"}', '"{\\"a\\": 1.0, \\"b\\":\\"\\\\u00e9\\"}"'),
        ('"{\\"a\\":1}"', '"{\\"a\\":1}"'),
        ("null", "null"),
    ],
)
def test_nim_gets_the_arguments_of_a_tool_call_as_text(arguments: str, expected: str) -> None:
    call = '{"messages":[{"role":"assistant","x":1.0,"tool_calls":[{"id":"c","function":{"name":"f","arguments":@}}]}]}'
    assert sent(call.replace("@", arguments)) == call.replace("@", expected)[:-1] + ',"nvext":{"top_k":-1}}'


def test_nim_completions_and_other_endpoints() -> None:
    body = '{"prompt":["a","b"],"logprobs":3,"top_k":2}'
    assert sent(body, COMPLETIONS) == '{"prompt":["a","b"],"logprobs":3,"nvext":{"top_k":2}}'
    for endpoint in ("/v1/embeddings", "/v1/responses"):
        assert sent(body, endpoint) == body


@pytest.mark.parametrize(
    ("top_k", "refused"),
    [
        *[(good, False) for good in ("1", "-1", "50", "null")],
        *[(bad, True) for bad in ("0", "-2", "1.5", '"5"', "true", "1e1")],
    ],
)
def test_nim_refuses_a_top_k_below_one(top_k: str, refused: bool) -> None:
    members = {"top_k": msgspec.Raw(top_k.encode())}
    found = nim.nim_refusal(CHAT, members)
    assert (found is not None) == refused
    assert found is None or found.param == "top_k"
    assert nim.nim_refusal("/v1/embeddings", members) is None
    assert nim.nim_refusal(CHAT, {}) is None


values: Any = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=3))
bodies = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.none() | st.integers(1) | st.just(-1),
        "repetition_penalty": st.none() | st.floats(0.5, 2),
        "response_format": st.sampled_from(
            [{"type": "text"}, {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}]
        ),
        "tools": st.sampled_from([None, [], [{"type": "function"}]]),
        "tool_choice": st.sampled_from(["auto", {"type": "function"}]),
        "nvext": st.sampled_from([None, {"top_k": 4}, {"guided_regex": "a"}, {"x": 1}]),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"content": st.just([{"type": "image_url", "image_url": {"url": PNG}}]) | st.text() | st.none()}
            )
        ),
        "x": values,
    },
)


@given(bodies)
def test_nim_takes_whatever_comes_of_it_and_the_rest_is_untouched(body: dict[str, Any]) -> None:
    result = json.loads(sent(json.dumps(body)))
    assert why_refused(CHAT, result) == ""
    assert result.get("x") == body.get("x")


# Azure and plain


def test_azure() -> None:
    path = azure.DIALECT.path(CHAT, "my gpt/4", "2024-10-21")
    assert path == "/openai/deployments/my%20gpt%2F4/chat/completions?api-version=2024-10-21"
    assert azure.DIALECT.auth("k") == {"api-key": "k"}
    assert azure.DIALECT.body is None


def test_the_table() -> None:
    assert DIALECTS["nim"] is nim.DIALECT
    assert (nim.DIALECT.body, nim.DIALECT.refusal) == (nim.nim_body, nim.nim_refusal)
    assert DIALECTS["azure"] is azure.DIALECT


def test_plain_says_what_came() -> None:
    plain = DIALECTS["plain"]
    assert (plain.body, plain.refusal, plain.auth("k")) == (None, None, {"Authorization": "Bearer k"})
    assert plain.path("/v1/chat/completions", "m", "") == "/chat/completions"
    assert nim.DIALECT.path("/v1/completions", "m", "") == "/completions"
