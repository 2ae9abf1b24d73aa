import json
import os
import tempfile

from openai_batch import Batch
from openai_batch.providers import Provider


def run(base_url, model, prompts):
    provider = Provider(name="everbatch", base_url=base_url, api_key="none")
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: os.path.join(folder, name + ".jsonl") for name in ("in", "out", "err")}
        with Batch(paths["in"], paths["out"], paths["err"], provider=provider) as batch:
            for prompt in prompts:
                batch.add_to_batch(model=model, messages=[{"role": "user", "content": prompt}])
            _, output, _ = batch.submit_wait_download(interval=0.5)
        texts = {}
        if output and os.path.exists(output):
            with open(output, encoding="utf-8") as lines:
                for line in lines:
                    result = json.loads(line)
                    texts[result["custom_id"]] = result["response"]["body"]["choices"][0]["message"]["content"]
    return [texts.get(f"line-{number + 1}") for number in range(len(prompts))]
