"""Client library for OpenAI-compatible Batch APIs, on the ``openai`` SDK: from requests to results by ``custom_id``.

It does not depend on the rest of Everbatch, and is also published on its own as ``everbatch-client`` (module
``everbatch_client``). Three lines turn a list of prompts into a dict of answers::

    with BatchClient(OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")) as client:
        results = client.run(["What is the capital of France?", "And of Peru?"], model="my-model")
    answers = {custom_id: result.text for custom_id, result in results.items() if result.ok}

It works with any server that has OpenAI's Files and Batches APIs, including OpenAI's own.
"""

from .async_client import AsyncBatchClient
from .client import BatchClient
from .errors import BatchFailedError, BatchNotEndedError, NotABatchServerError
from .lines import Request, Requests, Result, ResultPage
from .options import TERMINAL

__all__ = [
    "TERMINAL",
    "AsyncBatchClient",
    "BatchClient",
    "BatchFailedError",
    "BatchNotEndedError",
    "NotABatchServerError",
    "Request",
    "Requests",
    "Result",
    "ResultPage",
]
