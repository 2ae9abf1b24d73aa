"""Cutting a stream into lines."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from activities.input.jsonl import BYTE_ORDER_MARK, HEAD_BYTES, Line, parse_line, read_lines

pieces = st.lists(
    st.one_of(st.sampled_from([b"\n", b"\r\n", b" ", b"\t", BYTE_ORDER_MARK, b'{"a":1}', b"\xff\x00"]), st.binary()),
    max_size=12,
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return [data[start:end] for start, end in pairwise(bounds)]


def reference(data: bytes, max_bytes: int) -> list[Line]:
    """The same, written for the eye: all in memory."""
    lines: list[Line] = []
    offset = 0
    for number, piece in enumerate(data.split(b"\n"), 1):
        length = min(len(piece) + 1, len(data) - offset)  # the last line may have no end
        if length:
            text = piece.removeprefix(BYTE_ORDER_MARK) if number == 1 else piece
            if length > max_bytes and piece.strip():
                lines.append(Line(number, offset, length, None, text[:HEAD_BYTES]))
            elif text.strip():
                lines.append(Line(number, offset, length, text.strip()))
        offset += length
    return lines


@given(pieces, st.lists(st.integers(0, 10_000), max_size=9), st.sampled_from([1, 7, 1000]))
@example([b"\xef\xbb\xbf"], [1, 2], 1000)
@example([b"a\r", b"\nb"], [2], 1000)
def test_any_bytes_in_any_chunks_give_the_same_lines(parts: list[bytes], cuts: list[int], max_bytes: int) -> None:
    data = b"".join(parts)
    assert list(read_lines(cut(data, cuts), max_bytes)) == reference(data, max_bytes)


def texts(data: bytes, first_line: int = 1) -> list[tuple[int, bytes | None]]:
    return [(line.number, line.data) for line in read_lines([data], 1000, first_line=first_line)]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a", [(1, b"a")]),
        (b"a\n", [(1, b"a")]),
        (b"a\r\nb\r\n", [(1, b"a"), (2, b"b")]),
        (b"\n\na\n  \nb", [(3, b"a"), (5, b"b")]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", [(1, b"a"), (2, b"\xef\xbb\xbfb")]),
        (b"\xef\xbb\xbf\na", [(2, b"a")]),
    ],
)
def test_ends_marks_and_blank_lines(data: bytes, lines: list[tuple[int, bytes | None]]) -> None:
    assert texts(data) == lines


def test_a_piece_from_the_middle_keeps_its_numbers_and_has_no_mark() -> None:
    assert texts(b"\xef\xbb\xbfa\nb", first_line=7) == [(7, b"\xef\xbb\xbfa"), (8, b"b")]


def test_a_line_that_is_too_long_is_counted_and_not_held() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"a\n"
        for _ in range(100):
            yield b"x" * 100_000
        yield b"\nb\n"

    tracemalloc.start()
    lines = list(read_lines(chunks(), 500_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lines == [Line(1, 0, 2, b"a"), Line(2, 2, 10_000_001, None, b"x" * HEAD_BYTES), Line(3, 10_000_003, 2, b"b")]
    assert peak < 2_000_000


def test_the_bound_is_of_the_line_with_its_end() -> None:
    assert [line.data for line in read_lines([b"123\n1234\n"], 4)] == [b"123", None]


def test_a_request_line_is_its_raw_values() -> None:
    line = parse_line('{"body": {"a" : [1.50, "\\u00e9é"]},"x":0, "custom_id":"\\u0041"}'.encode())
    assert (bytes(line.body), bytes(line.custom_id)) == ('{"a" : [1.50, "\\u00e9é"]}'.encode(), b'"\\u0041"')
    assert (bytes(line.method), bytes(line.url)) == (b"", b"")


@given(st.binary(max_size=30))
def test_parsing_raises_nothing_but_value_errors(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_line(data)
