"""The stock OpenAI client against Everbatch: ``python examples/submit.py examples/chat.jsonl results.jsonl``."""

import sys
import time
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
file = client.files.create(file=Path(sys.argv[1]), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id,
    endpoint="/v1/chat/completions",
    completion_window="24h",
    extra_headers={"Idempotency-Key": f"submit-{file.id}"},  # a create that is sent twice makes one batch
)
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
print(batch.status, batch.request_counts)
if batch.output_file_id:
    client.files.content(batch.output_file_id).write_to_file(sys.argv[2])
