"""What all shards share that run in one worker process."""

from __future__ import annotations

import asyncio

from activities.cancel_watch import CancelWatch
from activities.results.first_answers import FirstAnswersOfBatches
from activities.upstreams.answer_budget import AnswerBudget


class Process:
    """Of whatever upstream the shards are."""

    def __init__(self, max_input_bytes: int, cancels: CancelWatch) -> None:
        self.inputs = AnswerBudget(max_input_bytes)
        """Of memory, for the requests of the shards."""
        self.cancels = cancels
        self.first_answers = FirstAnswersOfBatches()
        self.suspect = asyncio.Lock()
        """Held while a request is sent that may be what takes workers down."""
