"""The tree of what requests begin with."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.input import prefixes
from activities.input.prefixes import BLOCK_BYTES, PrefixTree


def tree(*texts: bytes) -> PrefixTree:
    made = PrefixTree()
    for text in texts:
        made.add(text)
    return made


def blocks(letters: str) -> bytes:
    """A text of one block for each letter."""
    return b"".join(letter.encode() * BLOCK_BYTES for letter in letters)


def order(*letters: str) -> list[str]:
    return [letters[place] for place in tree(*map(blocks, letters)).order()]


@given(st.lists(st.text("abc", max_size=4), max_size=30))
def test_each_request_comes_once_and_equal_ones_in_their_order(letters: list[str]) -> None:
    places = list(tree(*map(blocks, letters)).order())
    assert sorted(places) == list(range(len(letters)))
    # All that begin with a letter follow on each other.
    firsts = [letters[place][:1] for place in places]
    assert len([1 for n, first in enumerate(firsts) if n == 0 or firsts[n - 1] != first]) == len(set(firsts))


def test_what_is_shared_deeper_is_closer() -> None:
    shared = ["xa1", "xb1", "xa2", "y1", "xb2", "xa3", "y2", "xa4", "xb3"]
    found = order(*["x"] * 2, *shared)
    at = [name[:2] for name in found if name in shared]
    assert at == ["xa"] * 4 + ["xb"] * 3 + ["y1", "y2"] or at == ["xb"] * 3 + ["xa"] * 4 + ["y1", "y2"]


@pytest.mark.parametrize("letters", [["ab", "cd", "ef"], ["abc", "abd", "abe", "abf"], ["a", "a", "a"], ["", "", "a"]])
def test_where_nothing_can_be_gained_the_order_stays(letters: list[str]) -> None:
    assert order(*letters) == letters
    assert not tree(*map(blocks, letters)).pays


def test_less_than_a_block_in_common_counts_for_nothing() -> None:
    texts = [b"x" * (BLOCK_BYTES - 1) + bytes([n]) for n in (1, 2, 1, 2)]
    assert list(tree(*(text[:-1] for text in texts)).order()) == [0, 1, 2, 3]
    assert list(tree(*texts).order()) == [0, 2, 1, 3]


def test_it_pays_from_a_tenth_of_the_requests_on() -> None:
    alone = [blocks(chr(200 + n)) for n in range(17)]
    assert tree(*alone, blocks("a"), blocks("b"), blocks("a"), blocks("b")).pays is False
    assert tree(*alone[:16], blocks("a"), blocks("b"), blocks("a"), blocks("b")).pays is True


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MAX_NODES", 1000)
    chance = random.Random(0)
    tracemalloc.start()
    try:
        made = PrefixTree()
        for _ in range(50_000):
            made.add(chance.randbytes(2 * BLOCK_BYTES))
        places = made.order()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert sorted(places) == list(range(50_000))
