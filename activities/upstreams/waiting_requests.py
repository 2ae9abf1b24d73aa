"""What waits for its turn in a limiter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from activities.upstreams.lanes import Flight


class WaitingRequests:
    """The requests of one shard, for one model, that wait for their turn."""

    def __init__(
        self, turn: str, pending: list[int], start: Callable[[int, Flight], None], model: str = "", batch_id: str = ""
    ) -> None:
        """Args: ``turn`` is whose turn they take, that of a batch or of several; ``pending`` are the caller's numbers
        for its requests; ``start`` is called with each when it is to be sent.
        """
        self.turn = turn
        self.pending = deque(pending)
        self.start = start
        self.model = model
        self.batch_id = batch_id
        self.lane = (model, batch_id)
        """Requests of one model and one batch find room together or not at all."""
