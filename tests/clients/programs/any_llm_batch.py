import os
import tempfile
import time

import any_llm
import openai_sdk


def run(base_url, model, prompts):
    where = {"provider": "openai", "api_base": base_url, "api_key": "none"}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "in.jsonl")
        with open(path, "wb") as file:
            file.write(openai_sdk.input_of(model, prompts))
        batch = any_llm.create_batch(input_file_path=path, endpoint="/v1/chat/completions", **where)
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)
        batch = any_llm.retrieve_batch(batch_id=batch.id, **where)
    results = any_llm.retrieve_batch_results(batch_id=batch.id, **where).results
    texts = {item.custom_id: item.result.choices[0].message.content for item in results if item.result}
    return [texts.get(str(number)) for number in range(len(prompts))]
