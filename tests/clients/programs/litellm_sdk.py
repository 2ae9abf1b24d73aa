import json
import time

import litellm
import openai_sdk

PROVIDER = "hosted_vllm"


def run(base_url, model, prompts):
    where = {"custom_llm_provider": PROVIDER, "api_base": base_url, "api_key": "none"}
    file = litellm.create_file(file=("in.jsonl", openai_sdk.input_of(model, prompts)), purpose="batch", **where)
    batch = litellm.create_batch(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, **where
    )
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)
        batch = litellm.retrieve_batch(batch_id=batch.id, **where)
    texts = {}
    if batch.output_file_id:
        for line in litellm.file_content(file_id=batch.output_file_id, **where).text.splitlines():
            result = json.loads(line)
            texts[result["custom_id"]] = result["response"]["body"]["choices"][0]["message"]["content"]
    return [texts.get(str(number)) for number in range(len(prompts))]
