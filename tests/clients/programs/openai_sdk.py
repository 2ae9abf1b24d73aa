import json
import time

from openai import OpenAI


def input_of(model, prompts):
    """An input file with a request for each prompt, called by its number."""
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": prompt}]},
        }
        for number, prompt in enumerate(prompts)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def run(base_url, model, prompts, client=None):
    client = client or OpenAI(base_url=base_url, api_key="none")
    content = input_of(model, prompts)
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    assert batch.request_counts.total == len(prompts)
    texts = {}
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        for line in client.files.content(file_id).text.splitlines():
            result = json.loads(line)
            if file_id == batch.output_file_id:
                texts[result["custom_id"]] = result["response"]["body"]["choices"][0]["message"]["content"]
            else:
                assert result["error"]["code"]
    return [texts.get(str(number)) for number in range(len(prompts))]
