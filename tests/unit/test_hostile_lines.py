"""Input files that no client that means well uploads: what is taken is sent and answered, and nothing costs the worker
its memory.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from activities.input.jsonl import Line, RequestLine, parse_line, read_lines
from activities.input.request_rules import MAX_BODY_MEMBERS, MAX_MODEL_LENGTH, LineChecker
from activities.input.scan import scan_input
from activities.raw_json import MAX_DEPTH, count_items, escaped, is_deeper, repaired
from activities.results.output_lines import OutputLines
from tests.fakes.worker import BATCH, CHAT, completion, make_spec, request_line, routes
from workflows.types import ValidateResult

HEAD = b'{"custom_id":"a","method":"POST","url":"%b","body":' % CHAT.encode()
EMBEDDINGS = "/v1/embeddings"
MEGABYTE = 1 << 20
MAX_LINE_BYTES = 64 * MEGABYTE


def scan(data: bytes | Iterator[bytes], **spec: Any) -> ValidateResult:
    return scan_input([data] if isinstance(data, bytes) else data, make_spec(**spec), routes()).result


def traced(data: bytes | Iterator[bytes], **spec: Any) -> tuple[ValidateResult, float]:
    """With the peak of memory in megabytes."""
    tracemalloc.start()
    try:
        return scan(data, **spec), tracemalloc.get_traced_memory()[1] / MEGABYTE
    finally:
        tracemalloc.stop()


def loads(data: bytes) -> Any:
    """As every client reads it, but for the length of numbers."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(
        data.decode(), parse_constant=refuse, parse_int=lambda text: text if len(text) > 400 else int(text)
    )


def whole(value: Any) -> Any:
    """With U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in value)
    if isinstance(value, list):
        return [whole(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {whole(name): whole(item) for name, item in cast("dict[str, Any]", value).items()}
    return value


# What is inside a JSON string, as it is written.
written = st.lists(
    st.sampled_from(
        [
            *("\\ud83d", "\\uDC00", "\\ud83d\\ude00", "\\\\ud83d", "\\u0000", "\\n", "\\\\", '\\"', "\\/", "\\u2028"),
            *("\u2028", "\u2029", "\x85", "\x7f", "\ufeff", "é", "😀", "a", "[", "{", ",", ":", "../", "NaN"),
        ]
    ),
    max_size=6,
).map("".join)
numbers = st.sampled_from(["0", "-0", "1e400", "-1E+999", "1.10", "1e-999", "9" * 30, "9" * 5000, "0.1", "NaN", "01"])
plain = numbers | st.sampled_from(["true", "null", "[]", "{}"]) | written.map(lambda text: f'"{text}"')
json_texts = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(written, inner), max_size=3).map(
            lambda members: "{" + ",".join(f'"{name}" : {value}' for name, value in members) + "}"
        )
    ),
    max_leaves=6,
)
bodies = st.lists(st.tuples(written, json_texts), max_size=3).map(
    lambda members: "{" + "".join(f'"{name}":{value},' for name, value in members) + '"model":"m","messages":[]}'
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Mostly requests, each with an oddity or two; also members twice, and no requests at all."""
    custom_id = draw(written)
    body = draw(bodies | json_texts)
    extra = "".join(f',"{name}":{value}' for name, value in draw(st.lists(st.tuples(written, json_texts), max_size=1)))
    twice = draw(st.sampled_from(["", ',"custom_id":"twice"', ',"method":"POST"']))
    line = f'{{"custom_id":"{custom_id}","method":"POST","url":"{CHAT}","body":{body}{extra}{twice}}}'.encode()
    return draw(st.sampled_from([line, b"\xef\xbb\xbf" + line, b" \t" + line + b"\r"]) | st.binary(max_size=6))


def good_lines(custom_ids: list[str], body: str, ends: list[bytes]) -> bytes:
    return b"".join(
        f'{{"custom_id":"{number}{custom_id}","method":"POST","url":"{CHAT}","body":{body}}}'.encode() + end
        for number, (custom_id, end) in enumerate(zip(custom_ids, ends, strict=False))
    )


def check_round_trip(data: bytes, result: ValidateResult) -> None:
    """Each line of the input is in one shard, is sent as it was meant, and its answer can be read."""
    expected = {line.number: line.data for line in read_lines([data], MAX_LINE_BYTES) if line.data}
    found: dict[int, bytes] = {}
    output = OutputLines(BATCH)
    for shard in result.shards:
        in_shard = 0
        piece = data[shard.offset : shard.offset + shard.length]
        for line in read_lines([piece], MAX_LINE_BYTES, first_line=shard.first_line):
            if not line.data:
                continue
            in_shard += 1
            assert line.number not in found
            found[line.number] = line.data
            request, meant = parse_line(line.data), loads(line.data)
            body = bytes(request.body)
            assert loads(body) == whole(meant["body"])
            written = output.success(line.number, bytes(request.custom_id), completion(1))
            assert written.endswith(b"}\n")
            assert written.count(b"\n") == 1
            assert written.isascii()
            assert loads(written)["custom_id"] == whole(meant["custom_id"])
        assert in_shard == shard.requests
    assert found == expected
    assert result.total == len(expected)
    assert [(one.offset + one.length, other.offset) for one, other in pairwise(result.shards) if one == other] == []


@given(st.lists(lines(), max_size=4), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
@example([HEAD + b'{"model":"m","messages":[],"x":1e400,"\\ud83d":1}}'], b"\n")
@example([HEAD + b'{"model":"m","messages":[]},"\\ud83d":1e400}'], b"\n")
@example([HEAD + b'{"model":"m","messages":[],"x":1e400},"\\ud83d":1}'], b"\n")
@example([HEAD + b'{"model":"m","messages":[],"model":7,"model":"n"}}'], b"\n")
def test_any_line_is_refused_or_sent_and_answered(parts: list[bytes], end: bytes) -> None:
    data = end.join(parts)
    result = scan(data)
    result.model_dump_json()
    if result.errors:
        assert not result.shards
        assert all(0 < len(error.message) < 1000 for error in result.errors)
    else:
        check_round_trip(data, result)


@given(
    st.lists(written, min_size=1, max_size=8),
    bodies,
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\n\r\n \n"]), min_size=8, max_size=8),
)
def test_oddities_that_are_json_are_taken(custom_ids: list[str], body: str, ends: list[bytes]) -> None:
    data = good_lines(custom_ids, body, ends)
    is_json = True
    try:
        json.loads(body, parse_constant=lambda _: 1 // 0, parse_int=str)
    except (ValueError, ZeroDivisionError):
        is_json = False
    result = scan(data)
    if is_json and not result.errors:
        check_round_trip(data, result)
    codes = {error.code for error in result.errors}
    is_allowed = not is_json or '"model":' in body[:-27]
    assert codes <= ({"invalid_json_line", "invalid_type"} if is_allowed else set())


@pytest.mark.parametrize("depth", [300, MAX_DEPTH - 2, MAX_DEPTH - 1, 900, 980, 990, 5000, 200_000])
@pytest.mark.parametrize(("opening", "end"), [("[", "]"), ('{"a":', "1}")], ids=["arrays", "objects"])
def test_what_is_nested_deeply_is_refused_or_can_be_sent(depth: int, opening: str, end: str) -> None:
    inner = opening * depth + ("" if opening == "[" else "1") + end.removeprefix("1") * depth
    data = HEAD + b'{"model":"m","messages":[],"x":' + inner.encode() + b"}}"
    error = LineChecker(make_spec(), routes()).check(Line(1, 0, len(data), data)).error
    assert error is None or error.code == "invalid_json_line"

    def parse_below(frames: int) -> RequestLine:
        # The activity that sends it has other calls above it than the one that checked it.
        return parse_below(frames - 1) if frames else parse_line(data)

    if error is None:
        assert parse_below(150).body
    assert (error is None) == (depth + 2 <= MAX_DEPTH)
    if error:
        assert "levels" in error.message


# Numbers, names and lists without bounds


def one_error(result: ValidateResult, code: str, param: str | None = None) -> None:
    assert [(error.code, error.param) for error in result.errors] == [(code, param)]
    assert len(result.model_dump_json()) < 2000


def test_a_number_of_a_million_digits_goes_out_as_it_came() -> None:
    body = b'{"model":"m","messages":[],"seed":%b}' % (b"9" * 1_000_000)
    data = HEAD + body + b"}"
    assert scan(data).errors == []
    assert bytes(parse_line(data).body) == body


def test_a_custom_id_of_ten_megabytes_comes_back() -> None:
    custom_id = "é" * (5 * MEGABYTE)
    data = request_line(1, custom_id=custom_id)
    result, peak = traced(data)
    assert peak < 80
    assert len(result.model_dump_json()) < 2000  # but it does not cross Temporal
    line = OutputLines(BATCH).success(1, bytes(parse_line(data).custom_id), completion(1))
    assert json.loads(line)["custom_id"] == custom_id


def test_a_model_whose_name_would_not_cross_temporal() -> None:
    assert scan(request_line(1, model="m" * MAX_MODEL_LENGTH)).errors == []
    one_error(scan(request_line(1, model="m" * 3_000_000)), "string_above_max_length", "body.model")


def test_a_model_that_no_encoder_takes_crosses_temporal() -> None:
    result = scan(request_line(1).replace(b'"m"', b'"m\\ud83d"'))
    assert (result.errors, result.model) == ([], "m\ufffd")
    assert "m\ufffd" in result.model_dump_json()


def test_lines_beyond_the_limit_are_not_read() -> None:
    def chunks() -> Iterator[bytes]:
        for start in range(0, 8_000, 1000):
            assert start < 2000
            yield b"".join(request_line(number, model=f"model-{number}") for number in range(start, start + 1000))

    result, peak = traced(chunks(), max_requests=100)
    one_error(result, "too_many_tasks")
    assert "more than 100 requests" in result.errors[0].message
    assert peak < 2


def test_bad_lines_without_number_cost_no_memory() -> None:
    result, peak = traced((b"x\n" * 1000 for _ in range(8)), max_requests=200_000)
    assert (len(result.errors), result.errors_total) == (100, 8_000)
    assert peak < 5


@pytest.mark.parametrize(
    ("line", "total"), [(b'{"a":\n', 10_000), ("ü\n".encode("latin-1"), 1)], ids=["JSON", "encoding"]
)
def test_an_input_is_read_no_further_after_ten_thousand_bad_lines(line: bytes, total: int) -> None:
    def chunks() -> Iterator[bytes]:
        for number in range(12):
            assert number < 11
            yield line * 1000

    result = scan(chunks(), max_requests=10_000_000)
    assert (len(result.errors), result.errors_total) == (min(total, 100), total)
    assert ("later lines were not checked" in result.errors[-1].message) is (total > 1)


def embedding(value: bytes) -> bytes:
    return HEAD.replace(CHAT.encode(), EMBEDDINGS.encode()) + b'{"model":"m","input":' + value + b"}}"


FULL = 4 * MEGABYTE - 1000


@pytest.mark.parametrize(
    ("value", "is_taken"),
    [
        (b"[" + b"1," * (FULL // 2) + b"1]", True),
        (b"[" + b"[1,2],[3]," * 10_000 + b"[" + b"1," * (FULL // 4) + b"1]]", True),
        (b"[" + b'"",' * (FULL // 3) + b'""]', False),
        (b"[" + b"[]," * (FULL // 3) + b"[]]", False),
        (b"[" + b'{"a":[1]},' * 60_000 + b"1]", False),
        (b"[ " + b'"\\",[",' * (FULL // 7) + b'"\\\\"]', False),
    ],
    ids=["tokens", "lists of tokens", "texts", "lists", "objects", "quotes"],
)
def test_a_line_of_embeddings_is_not_taken_apart_in_memory(value: bytes, is_taken: bool) -> None:
    result, peak = traced(embedding(value), endpoint=EMBEDDINGS)
    assert peak < 18
    if is_taken:
        assert result.errors == []
    else:
        one_error(result, "too_many_tasks")


def test_a_body_of_a_million_members() -> None:
    members = b"".join(b'"%x":1,' % number for number in range(1_000_000))
    data = HEAD + b"{" + members + b'"model":"m","messages":[]}}'
    result, peak = traced(data)
    one_error(result, "object_above_max_properties", "body")
    assert peak < 4 * len(data) / MEGABYTE
    few = b"".join(b'"%x":[1,2],' % number for number in range(MAX_BODY_MEMBERS - 2))
    assert scan(HEAD + b"{" + few + b'"model":"m","messages":[]}}').errors == []


@given(json_texts.filter(lambda text: "NaN" not in text and "01" not in text), st.integers(0, 5))
def test_depth_is_that_of_the_values(text: str, maximum: int) -> None:
    def depth(value: Any) -> int:
        if isinstance(value, dict):
            value = list(cast("dict[str, Any]", value).values())
        return 1 + max(map(depth, cast("list[Any]", value)), default=0) if isinstance(value, list) else 0

    # Of members that come twice, json sees the last only.
    pairs = json.loads(text, parse_int=str, object_pairs_hook=lambda pairs: [item for _, item in pairs])
    assert is_deeper(text.encode(), maximum) == (depth(pairs) > maximum)


@given(json_texts.filter(lambda text: "NaN" not in text and "01" not in text))
def test_text_in_ascii_means_the_same(text: str) -> None:
    data = escaped(text.encode())
    assert data.isascii()
    assert loads(data) == loads(text.encode())
    assert loads(repaired(text.encode())) == whole(loads(text.encode()))
    assert len(repaired(data)) == len(data)


@given(st.lists(json_texts.filter(lambda text: "NaN" not in text and "01" not in text), min_size=1, max_size=6))
def test_items_are_counted_without_looking_into_them(items: list[str]) -> None:
    data = f"[{' , '.join(items)}]".encode()
    assert count_items(data, 100) == len(items)
    members = ",".join(f'"{number}":{item}' for number, item in enumerate(items))
    assert count_items(f"{{{members}}}".encode(), 100) == len(items)
    assert count_items(data, 2) <= 3
