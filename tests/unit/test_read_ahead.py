"""Reading several small objects at once, in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from activities.records.read_ahead import read_ahead


@pytest.mark.parametrize("at_once", [1, 4])
def test_all_come_in_order(at_once: int) -> None:
    assert list(read_ahead(str, range(100), at_once)) == [str(number) for number in range(100)]
    assert list(read_ahead(str, [], at_once)) == []


def test_several_are_read_at_once() -> None:
    together = threading.Barrier(4, timeout=10)
    assert len(list(read_ahead(lambda _: together.wait(), range(4), 4))) == 4


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_failure_comes_at_its_place(at_once: int) -> None:
    found = read_ahead(lambda number: 1 // number, [2, 1, 0, 1], at_once)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_who_stops_early_has_few_read_for_nothing() -> None:
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    found = read_ahead(str, numbers(), 4)
    assert next(found) == "0"
    found.close()
    assert len(asked) == 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
