"""Requests that wait for their turn in a limiter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from activities.upstreams.lanes import Flight


class WaitingRequests:
    """The requests of one shard for one model that wait for their turn."""

    def __init__(
        self, turn: str, pending: list[int], start: Callable[[int, Flight], None], model: str = "", batch_id: str = ""
    ) -> None:
        """Args: ``turn`` identifies the batch, or the group of batches, whose turn they take; ``pending`` are the
        caller's numbers for its requests; ``start`` is called with each number and its flight when it may be sent.
        """
        self.turn = turn
        self.pending = deque(pending)
        self.start = start
        self.model = model
        self.batch_id = batch_id
        self.lane = (model, batch_id)
        """Requests of the same model and batch either all find room or none does."""
