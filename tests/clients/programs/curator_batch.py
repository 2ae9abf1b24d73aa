import os
import tempfile

os.environ.update(TELEMETRY_ENABLED="0", CURATOR_VIEWER="0", HF_DATASETS_OFFLINE="1")

from bespokelabs import curator


class Answers(curator.LLM):
    def prompt(self, row):
        return row["prompt"]

    def parse(self, row, response):
        return {"prompt": row["prompt"], "text": response}


def run(base_url, model, prompts):
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CURATOR_CACHE_DIR"] = folder
        parameters = {
            "base_url": base_url,
            "api_key": "none",
            "batch_check_interval": 1,
            "max_retries": 1,
            "require_all_responses": False,
        }
        answers = Answers(model_name=model, backend="openai", batch=True, backend_params=parameters)
        found = answers([{"prompt": prompt} for prompt in prompts])
        rows = getattr(found, "dataset", found)
        texts = {row["prompt"]: row["text"] for row in rows}
    return [texts.get(prompt) for prompt in prompts]
