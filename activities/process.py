"""The state that all shards of one worker process share."""

from __future__ import annotations

import asyncio

from activities.cancel_watch import CancelWatch
from activities.results.first_answers import FirstAnswersOfBatches
from activities.results.other_cuts import OtherCuts
from activities.upstreams.answer_budget import AnswerBudget


class Process:
    """The state that is shared by the shards of all upstreams."""

    def __init__(self, max_input_bytes: int, cancels: CancelWatch) -> None:
        self.inputs = AnswerBudget(max_input_bytes)
        """The memory budget for the requests of the shards."""
        self.cancels = cancels
        self.first_answers = FirstAnswersOfBatches()
        self.other_cuts = OtherCuts()
        self.suspect = asyncio.Lock()
        """Held while a request is sent that is suspected to crash workers."""
