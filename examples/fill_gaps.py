"""For tools that read the output file of a batch by position, such as distilabel and chatlas: see docs/clients.md."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

FAILED = "[no answer: the request failed]"


def fill_gaps(client: Any) -> None:
    """Let the output files that an OpenAI client reads have a line for each request, in the order of the input.

    A failed request is answered by ``FAILED``.
    """
    read = client.files.content

    def content(file_id: str, **options: Any) -> Any:
        batch = next((batch for batch in client.batches.list(limit=100) if batch.output_file_id == file_id), None)
        if batch is None:
            return read(file_id, **options)
        answered = {line["custom_id"]: line for line in map(json.loads, read(file_id).text.splitlines())}
        requests = (json.loads(line) for line in read(batch.input_file_id).text.split("\n") if line.strip())
        lines = [answered.get(request["custom_id"]) or stand_in(request["custom_id"]) for request in requests]
        return SimpleNamespace(text="".join(json.dumps(line) + "\n" for line in lines))

    client.files.content = content


def stand_in(custom_id: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": FAILED, "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}
    body = {"id": custom_id, "object": "chat.completion", "created": 0, "model": "none", "choices": [choice]}
    response = {"status_code": 200, "request_id": custom_id, "body": body}
    return {"id": custom_id, "custom_id": custom_id, "response": response, "error": None}
