"""Reads many small objects in order, several of them concurrently if each read waits for the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Iterable[T], at_once: int) -> Generator[R]:
    """Yield the result of ``read`` for each item, in order. Blocks, also when the generator is closed early.

    Calls ``read`` from up to ``at_once`` threads.

    Raises:
        Exception: whatever ``read`` raised, when its item's turn comes.
    """
    if at_once == 1:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(at_once, "read-ahead") as pool:
        reading: deque[Future[R]] = deque()
        try:
            for item in items:
                reading.append(pool.submit(read, item))
                if len(reading) >= at_once:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()
        finally:
            for future in reading:
                future.cancel()
