"""The items of an array in a body, however its bytes are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.json_items import JsonItems, MalformedItemsError, TooLongError

LEAVES = st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\[]{},:é\u2028 \n'), max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def cut(body: bytes, size: int, maximum: int = 1000) -> tuple[list[bytes], JsonItems]:
    items = JsonItems("requests", maximum)
    found = [item for start in range(0, len(body), size) for item in items.feed(body[start : start + size])]
    items.end()
    return found, items


@given(before=VALUES, requests=st.lists(VALUES, max_size=6), after=VALUES, spaces=st.booleans())
def test_items_are_those_of_a_decoder_however_the_body_is_cut(
    before: Any, requests: list[Any], after: Any, spaces: bool
) -> None:
    value = {"before": before, "requests": requests, "after": {"requests": after}}
    body = json.dumps(value, indent=1 if spaces else None, ensure_ascii=spaces).encode()
    for size in (1, 2, 7, len(body)):
        found, items = cut(body, size, maximum=10_000)
        assert [json.loads(item) for item in found] == requests
        assert json.loads(items.rest) == value | {"requests": []}
        assert items.arrays == 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b'{"x": [1, 2]}', b'{"x": {"requests": [1]}}', b'["requests", [1]]']
)
def test_what_has_no_such_array(body: bytes) -> None:
    found, items = cut(body, 3)
    assert (found, items.arrays) == ([], 0)


@pytest.mark.parametrize(
    "body", [b'{"requests": [1', b'{"requests": [1]', b'{"requests": ["a\\"]}', b'{"requests": [1,]}']
)
def test_what_ends_early_or_lacks_an_item(body: bytes) -> None:
    with pytest.raises(MalformedItemsError):
        cut(body, 4)


def test_neither_an_item_nor_what_is_around_them_may_be_too_long() -> None:
    with pytest.raises(TooLongError):
        cut(b'{"requests": ["%b"]}' % (b"x" * 2000), 100)
    with pytest.raises(TooLongError):
        cut(b'{"x": "%b"}' % (b"x" * (2 << 20)), 1 << 16)
